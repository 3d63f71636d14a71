//! The memory of the machine: what cannot fit is refused before work begins, because a failed allocation ends the
//! program without a message of ours.

use std::fs::read_to_string;

use context_parallel::error::Result;

use super::{args, output};

/// Bytes of a token of a batch on its way to the ranks: id and label.
pub const TOKEN_BYTES: u64 = 16;

/// Refuses what needs more bytes than the machine has, or than can be addressed. `what` is what needs them, `fix` what
/// helps.
pub fn check(needed: u64, what: &str, fix: &str) -> Result<()> {
    refuse(needed, limit(), what, fix)
}

/// Bytes of so many tokens of a batch.
pub fn token_bytes(tokens: usize) -> u64 {
    (tokens as u64).saturating_mul(TOKEN_BYTES)
}

fn refuse(needed: u64, limit: Option<u64>, what: &str, fix: &str) -> Result<()> {
    let limit = limit.unwrap_or(u64::MAX).min(isize::MAX as u64);
    if needed <= limit {
        return Ok(());
    }
    let (needed, limit) = (output::bytes(needed), output::bytes(limit));
    Err(args::numbers(format!("{what} needs about {needed} of memory, this machine has {limit}: {fix}")))
}

/// Bytes that this process may use, if that is known.
pub fn memory() -> Option<u64> {
    limit()
}

/// Memory and swap of the machine, or the share of it that the process may have where that is less. Linux only.
fn limit() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok().as_deref().and_then(total);
    let share = read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(share).min()
}

/// Bytes of memory and swap by the lines of `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(field("MemTotal:")? + field("SwapTotal:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(total("MemTotal:       2 kB\nMemFree: 1 kB\nSwapTotal:  1 kB\n"), Some(3 * 1024));
        assert_eq!(total("MemTotal: 2 kB\n"), Some(2048));
        assert_eq!((total(""), total("MemTotal: x kB\n")), (None, None));
        assert!(refuse(5, None, "it", "less").is_ok() && refuse(5, Some(5), "it", "less").is_ok());
        assert!(refuse(u64::MAX, None, "it", "less").is_err(), "nothing has so much");
        let message = refuse(4096, Some(2048), "--batch 9", "use a smaller --batch").unwrap_err().to_string();
        assert_eq!(message, "--batch 9 needs about 4.0 KiB of memory, this machine has 2.0 KiB: use a smaller --batch");
    }
}
