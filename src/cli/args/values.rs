//! Numbers that options take: from 1, from 0, and threads.

use context_parallel::error::Result;

use super::refusals::numbers;

/// Refuses 0.
pub fn positive(option: &str, value: usize) -> Result<usize> {
    match value {
        0 => Err(numbers(format!("{option} is 0: use at least 1"))),
        value => Ok(value),
    }
}

/// Refuses what is not a finite number of at least 0.
pub fn not_negative(option: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(numbers(format!("{option} is {value}: use 0 or a number above it")))
}

/// Most threads of a rank on a machine with fewer cores.
const MOST_THREADS: usize = 64;

/// Threads per rank: as asked for, else the cores shared out.
pub fn threads(asked: Option<usize>, ranks: usize) -> Result<usize> {
    match asked {
        Some(threads) => given_threads(threads),
        None => Ok((cores() / ranks).max(1)),
    }
}

/// Refuses threads that the machine would only start and wait for.
pub fn given_threads(threads: usize) -> Result<usize> {
    let most = cores().max(MOST_THREADS);
    match positive("--threads", threads)? {
        threads if threads <= most => Ok(threads),
        _ => Err(numbers(format!(
            "--threads is {threads}: a rank takes at most {most} on this machine ({} cores), use fewer",
            cores()
        ))),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_shared_out() {
        assert_eq!(threads(Some(3), 2).unwrap(), 3);
        assert!(threads(Some(0), 2).unwrap_err().to_string().contains("--threads is 0"));
        assert_eq!(threads(Some(MOST_THREADS), 2).unwrap(), MOST_THREADS);
        let most = cores().max(MOST_THREADS);
        let message = threads(Some(most + 1), 2).unwrap_err().to_string();
        assert!(message.contains(&format!("at most {most}")), "{message}");
        assert_eq!(threads(None, 100_000).unwrap(), 1);
    }
}
