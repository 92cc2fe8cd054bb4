//! What a process has used so far: CPU, bytes it had written to disks, memory.
//!
//! In: a process id. Out: counters that only grow, and its memory of this moment. Source: proc(5).
use anyhow::Context as _;
use serde::Serialize;

/// Clock ticks per second in `/proc/PID/stat`: fixed at 100 in what the kernel shows to programs.
const TICKS: f64 = 100.0;

/// See the module's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Seconds of CPU, in the program and in the kernel for it.
    pub cpu_s: f64,
    /// Bytes that it caused to be written to disks (whole pages, as the kernel counts them).
    pub disk_bytes: u64,
    /// Resident memory in bytes, now.
    pub resident: u64,
    /// Greatest resident memory in bytes so far.
    pub peak: u64,
}

impl Usage {
    /// Of this process.
    ///
    /// # Errors
    /// If it is gone.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).with_context(|| format!("process {pid} is gone"));
        Self::parse(&read("stat")?, &read("io")?, &read("status")?).with_context(|| format!("/proc/{pid} is not as expected"))
    }

    fn parse(stat: &str, io: &str, status: &str) -> Option<Self> {
        // The command is in parentheses and may itself contain parentheses and spaces.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let line = |text: &str, name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name))?;
            found.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu_s: (ticks(11)? + ticks(12)?) / TICKS,
            disk_bytes: line(io, "write_bytes:")?,
            resident: line(status, "VmRSS:")? * 1024,
            peak: line(status, "VmHWM:")? * 1024,
        })
    }

    /// What was used since `earlier`; memory as it is now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - earlier.cpu_s,
            disk_bytes: self.disk_bytes.saturating_sub(earlier.disk_bytes),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_the_kernel_says() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 777 1 1";
        let io = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        let usage = Usage::parse(stat, io, "Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n").unwrap();
        let expected = Usage {
            cpu_s: 2.0,
            disk_bytes: 8192,
            resident: 10 << 10,
            peak: 20 << 10,
        };
        assert_eq!(usage, expected);
        assert_eq!(
            usage
                .since(&Usage {
                    cpu_s: 0.5,
                    disk_bytes: 4096,
                    ..usage
                })
                .disk_bytes,
            4096
        );
        assert!(Usage::parse("7 (a) S", io, "").is_none());
    }

    #[test]
    fn this_process_has_used_memory() {
        let me = Usage::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.resident > 0 && me.peak >= me.resident);
    }
}
