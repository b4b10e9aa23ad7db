//! docs/operations.md and the walks of docs/observability.md are true: every command in them is run, incident by incident,
//! and what it prints is what the page says.
//!
//! A fenced block that begins with `$ ` is a session: lines after `$ ` are commands, the others what they print.
//! `<!-- run: … -->` are commands that the reader need not see. What differs from run to run (digests, sizes, times,
//! process numbers) is compared by its shape. `UPDATE_DOCS=1 cargo test --test operations` writes what is printed now
//! into the page.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::image::{file, image, noise};

/// The page's words for places that every run has elsewhere.
const STORE: &str = "/var/lib/transload";
const MOUNTS: &str = "/mnt";

#[test]
fn the_incidents_end_as_the_page_says() {
    if support::tools::have(&["bash", "mount", "timeout"]) {
        walk("docs/operations.md");
    }
}

#[test]
fn the_walks_lead_where_the_page_says() {
    if support::tools::have(&["bash", "jq"]) {
        walk("docs/observability.md");
    }
}

fn walk(page: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(&page).expect("the page");
    let mut written = String::new();
    let mut wrong = Vec::new();
    for section in sections(&text) {
        if !section.contains("\n```\n$ ") {
            written.push_str(&section);
            continue;
        }
        let house = House::new();
        let now = run_section(&house, &section);
        if shape(&now) != shape(&section) {
            wrong.push(format!("--- the page\n{section}\n+++ what is printed now\n{now}"));
        }
        written.push_str(&now);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(page, written).expect("the page is written");
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The page in pieces, each beginning with its heading; together they are the page.
fn sections(text: &str) -> Vec<String> {
    let mut sections = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.starts_with("## ") {
            sections.push(String::new());
        }
        sections.last_mut().expect("one at least").push_str(line);
    }
    sections
}

/// Where one incident happens.
struct House {
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        let dir = support::scratch();
        let sample = image()
            .name("example.com/app:1")
            .layer(file("bin/app", noise(1, 300_000)).file("etc/app.conf", "debug=0\n"))
            .layer(file("etc/motd", "hello\n"));
        let big = image().name("example.com/big:1").layer(file("data", noise(2, 6_000_000)));
        fs::create_dir_all(dir.path().join("work")).expect("a directory");
        fs::create_dir_all(dir.path().join("mnt/app")).expect("a directory");
        fs::write(dir.path().join("work/app.tar"), sample.docker()).expect("an archive");
        fs::write(dir.path().join("work/big.tar"), big.docker()).expect("an archive");
        House { dir }
    }

    fn real(&self, text: &str) -> String {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        text.replace(STORE, &at("store")).replace(MOUNTS, &at("mnt"))
    }

    fn shown(&self, text: &str) -> String {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        text.replace(&at("store"), STORE).replace(&at("mnt"), MOUNTS)
    }

    /// Runs one command line as the reader would, and gives what the terminal shows.
    fn run(&self, line: &str) -> String {
        let programs = support::run::program().parent().expect("a directory").display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let script = format!("exec 2>&1\n{}", self.real(line));
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(self.dir.path().join("work"))
            .env("PATH", format!("{programs}:{path}:/usr/sbin:/sbin"))
            .env("TRANSLOAD_STORE", self.dir.path().join("store"))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("bash starts");
        self.shown(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for place in ["mnt/app", "store"] {
            let _ = rustix::mount::unmount(self.dir.path().join(place), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A section with what its commands print now.
fn run_section(house: &House, section: &str) -> String {
    let mut now = String::new();
    let (mut in_block, mut in_session) = (false, false);
    for line in section.split_inclusive('\n') {
        if let Some(hidden) = line.strip_prefix("<!-- run: ") {
            house.run(hidden.trim_end().trim_end_matches("-->").trim());
        }
        let fence = line.starts_with("```");
        if fence {
            (in_block, in_session) = (!in_block, false);
        }
        match line.strip_prefix("$ ") {
            Some(command) if in_block => {
                in_session = true;
                now.push_str(line);
                now.push_str(&house.run(command.trim_end()));
            }
            // What the session printed when the page was written.
            _ if in_session && !fence => {}
            _ => now.push_str(line),
        }
    }
    now
}

/// The text with everything that differs from run to run in one form.
fn shape(text: &str) -> String {
    let mut shaped = String::new();
    for line in text.lines() {
        // Which of several threads meets a full disk first differs from run to run.
        let line = match (line.starts_with("error: cannot import"), line.rsplit_once(": ")) {
            (true, Some((_, cause))) => cause,
            _ => line,
        };
        let words: Vec<String> = line.split_whitespace().map(word_shape).collect();
        shaped.push_str(&words.join(" "));
        shaped.push('\n');
    }
    shaped
}

/// Numbers as `0`, digests and unique names as `x`, units of size and time as one each.
fn word_shape(word: &str) -> String {
    let mut shaped = String::new();
    for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '.') {
        let (body, end) = match part.char_indices().next_back() {
            Some((at, last)) if !last.is_ascii_alphanumeric() && last != '.' => part.split_at(at),
            _ => (part, ""),
        };
        let digits = body.chars().any(|c| c.is_ascii_digit());
        let hex = body.len() >= 12 && body.chars().all(|c| c.is_ascii_hexdigit());
        let number = digits && body.chars().all(|c| c.is_ascii_digit() || c == '.');
        shaped.push_str(match body {
            _ if hex => "x",
            _ if number => "0",
            "ms" | "s" => "s",
            "kB" | "MB" | "GB" => "B",
            other => other,
        });
        shaped.push_str(end);
    }
    shaped
}

#[test]
fn only_what_differs_from_run_to_run_is_left_out() {
    assert_eq!(shape("freed 12.3 MB in 7 ms"), shape("freed 8.1 kB in 1.2 s"));
    assert_eq!(shape("sha256:0123456789abcdef: bad"), shape("sha256:fedcba9876543210: bad"));
    assert_ne!(shape("freed 1 MB"), shape("kept 1 MB"));
    assert_ne!(shape("$ transload gc"), shape("$ transload rm"));
}
