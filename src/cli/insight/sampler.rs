//! What the machine did meanwhile: a thread of the face that looks into /proc every few milliseconds.
//!
//! A figure that this kernel does not give is zero; sampling never fails a run.

use super::recorder::Recorder;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The use of processors and disks between the sample before and this one.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub at_us: u64,
    /// How many processors this process kept busy.
    pub cpu: f64,
    /// How many everything on this machine did.
    pub machine_cpu: f64,
    /// What this process read from and wrote to disks, in 10⁶ bytes a second.
    pub read_mb_s: f64,
    pub write_mb_s: f64,
    /// How many processors' worth of time tasks waited for disks, machine-wide.
    pub io_wait: f64,
}

/// Samples until it is stopped.
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Sample>>,
}

const INTERVAL: Duration = Duration::from_millis(50);

/// The end comes at any time after the last sample; the kernel's clock ticks every 10 ms, and less than two are nonsense.
const SHORTEST_US: u64 = 20_000;

/// More would not be seen; from here on every second one is dropped and half as many are taken.
const MAX_SAMPLES: usize = 2000;

impl Sampler {
    /// None where no thread can be had.
    pub fn start(recorder: Recorder) -> Option<Sampler> {
        let (stop, stopped) = channel::<()>();
        let named = std::thread::Builder::new().name("sampler".to_string());
        let thread = named.spawn(move || {
            let mut samples = Vec::new();
            let mut interval = INTERVAL;
            let mut before = Counters::read(&recorder);
            loop {
                let ended = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                let now = Counters::read(&recorder);
                samples.extend(now.since(&before));
                before = now;
                if samples.len() > MAX_SAMPLES {
                    samples = samples.chunks(2).map(|pair| pair[0].clone()).collect();
                    interval *= 2;
                }
                if ended {
                    return samples;
                }
            }
        });
        thread.ok().map(|thread| Sampler { stop, thread })
    }

    pub fn stop(self) -> Vec<Sample> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

#[derive(Default)]
struct Counters {
    at_us: u64,
    process_us: u64,
    machine_ticks: u64,
    wait_ticks: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// The kernel's clock tick; USER_HZ is 100 on every architecture that Linux has now.
const TICKS_PER_SECOND: f64 = 100.0;

impl Counters {
    fn read(recorder: &Recorder) -> Counters {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (machine_ticks, wait_ticks) = machine(&text("/proc/stat"));
        let (read_bytes, written_bytes) = io(&text("/proc/self/io"));
        Counters {
            at_us: recorder.now_us(),
            process_us: process_us(),
            machine_ticks,
            wait_ticks,
            read_bytes,
            written_bytes,
        }
    }

    fn since(&self, before: &Counters) -> Option<Sample> {
        let elapsed = self.at_us.checked_sub(before.at_us)?;
        let seconds = Some(elapsed).filter(|us| *us >= SHORTEST_US)? as f64 / 1e6;
        let ticks = |now: u64, then: u64| now.saturating_sub(then) as f64 / TICKS_PER_SECOND / seconds;
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / 1e6 / seconds;
        Some(Sample {
            at_us: self.at_us,
            cpu: self.process_us.saturating_sub(before.process_us) as f64 / 1e6 / seconds,
            machine_cpu: ticks(self.machine_ticks, before.machine_ticks),
            read_mb_s: rate(self.read_bytes, before.read_bytes),
            write_mb_s: rate(self.written_bytes, before.written_bytes),
            io_wait: ticks(self.wait_ticks, before.wait_ticks),
        })
    }
}

/// Processor time of all threads; finer than /proc/self/stat, which counts in ticks.
fn process_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Busy ticks and ticks of waiting for disks, from the first line of /proc/stat.
fn machine(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
    (at(0) + at(1) + at(2) + at(5) + at(6), at(4))
}

fn io(text: &str) -> (u64, u64) {
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    (of("read_bytes:"), of("write_bytes:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_it_is_written() {
        assert_eq!(machine("cpu  10 1 5 900 7 2 3 0 0 0\ncpu0 1 1"), (21, 7));
        assert_eq!(io("rchar: 5\nread_bytes: 4096\nwrite_bytes: 12\ncancelled_write_bytes: 0\n"), (4096, 12));
        assert_eq!((machine(""), io("")), ((0, 0), (0, 0)));
        let at = |at_us, process_us| Counters { at_us, process_us, ..Counters::default() };
        let sample = at(2_000_000, 3_000_000).since(&at(1_000_000, 1_000_000)).expect("a second");
        assert_eq!(sample.cpu, 2.0);
    }
}
