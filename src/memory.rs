//! Memory of a device or of the machine: what there is, and what is free of it.

use std::fmt;

/// The memory of a device, in bytes. [`Display`](fmt::Display) shows it: `1.50 GiB free of 79.15 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// The bytes that can still be taken, without those that libtorch keeps for later tensors of this process.
    pub free: u64,
    /// The bytes that there are.
    pub total: u64,
}

impl MemoryInfo {
    pub(crate) fn new(free: u64, total: u64) -> Self {
        MemoryInfo { free, total }
    }

    /// That of the machine, as Linux counts it; `None` where `/proc` does not tell.
    pub(crate) fn of_host() -> Option<Self> {
        Self::of_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn of_meminfo(text: &str) -> Option<Self> {
        let bytes = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self::new(bytes("MemAvailable")?, bytes("MemTotal")?))
    }
}

impl fmt::Display for MemoryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free of {}", in_words(self.free), in_words(self.total))
    }
}

/// Bytes in the largest unit of which there is one, as libtorch writes them.
pub(crate) fn in_words(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_is_read_from_the_lines_of_linux() {
        let text =
            "MemTotal:       24573400 kB\nMemFree:         1 kB\nMemAvailable:   18000000 kB\n";
        let info = MemoryInfo::of_meminfo(text).unwrap();
        assert_eq!(info, MemoryInfo::new(18_000_000 << 10, 24_573_400 << 10));
        assert_eq!(info.to_string(), "17.17 GiB free of 23.44 GiB");
        for bad in ["", "MemTotal: 5 kB\n", "MemTotal: 5\nMemAvailable: 5 kB\n", "MemTotal: x kB\n"]
        {
            assert_eq!(MemoryInfo::of_meminfo(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        let shown = [0, 1023, 1 << 10, 3 << 19, 1 << 30, 4 << 40].map(in_words);
        assert_eq!(
            shown,
            ["0 bytes", "1023 bytes", "1.00 KiB", "1.50 MiB", "1.00 GiB", "4096.00 GiB"]
        );
    }
}
