//! The `transload` command: a face of the library, and nothing more.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
