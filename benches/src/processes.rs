//! What a process has used, from `/proc`: the steadiest figure of a load test, because it does not depend on who else
//! had the cores.

use std::fs;

/// The unit of `/proc/<pid>/stat` towards programs; the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process so far, microseconds; `None` if it is gone. The resolution is 10 ms.
pub fn cpu_us(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces; what follows its parenthesis has none. utime and stime are fields 14 and 15 of all.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000_000 / TICKS_PER_SECOND))
}

/// Anonymous resident memory of a process, bytes: what it costs and nothing else can be dropped for.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory that only this process has, bytes.
pub fn private_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(of("Private_Clean:")? + of("Private_Dirty:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let pid = std::process::id();
        let before = cpu_us(pid).unwrap();
        let mut x = 1u64;
        while cpu_us(pid).unwrap() < before + 20_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(anonymous_bytes(pid).unwrap() > 4096 && private_bytes(pid).unwrap() > 4096);
        assert_eq!(cpu_us(u32::MAX), None);
    }
}
