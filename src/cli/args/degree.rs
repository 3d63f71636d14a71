//! Numbers of ranks as the user writes them.

use context_parallel::error::{Error, Result};

use super::refusals::numbers;

/// A degree as the user writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RankCount {
    Ranks(usize),
    /// Outer and inner degree.
    Grid(usize, usize),
}

/// A number of ranks, or an outer and an inner degree.
pub(super) fn degree(text: &str) -> Result<RankCount> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once(['x', 'X']) {
        Some((outer, inner)) if is_number(outer) && is_number(inner) => {
            match (outer.parse::<usize>(), inner.parse::<usize>()) {
                (Ok(outer @ 1..), Ok(inner @ 1..)) if outer.checked_mul(inner).is_some() => {
                    Ok(RankCount::Grid(outer, inner))
                }
                _ => Err(numbers(format!("--cp is {text}: use two degrees of at least 1, such as 2x2"))),
            }
        }
        None if text.trim().parse::<usize>().is_ok() => ranks(text).map(RankCount::Ranks),
        _ => Err(not_a_degree(text, ", or two of them for ring-ulysses, such as 2x2")),
    }
}

fn not_a_degree(text: &str, more: &str) -> Error {
    numbers(format!("--cp is \"{text}\": use a number of ranks, such as 2{more}"))
}

/// A number of ranks.
fn ranks(text: &str) -> Result<usize> {
    match text.trim().parse() {
        Ok(0) => Err(numbers("--cp is 0: use at least 1 rank".to_string())),
        Ok(cp) => Ok(cp),
        Err(_) => Err(not_a_degree(text, "")),
    }
}

/// Numbers of ranks, separated by commas.
pub fn rank_list(text: &str) -> Result<Vec<usize>> {
    text.split(',').map(ranks).collect()
}
