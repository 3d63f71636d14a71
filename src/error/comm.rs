//! Errors between ranks.

use thiserror::Error;

/// What can go wrong between ranks.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum CommError {
    /// Another rank failed; it said why.
    #[error("rank {rank} failed: {reason}")]
    Poisoned {
        /// The rank that failed first.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// Another rank did not answer in time.
    #[error("rank {peer} was silent for {seconds} s in {operation} (step {step}): {}", why_silent(*peer, waits))]
    Deadline {
        /// The silent rank.
        peer: usize,
        /// Seconds waited.
        seconds: u64,
        /// The operation waited for.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
        /// Whom the silent rank waits for, whom that one waits for, and so on, as far as there is such a rank or up to
        /// one that is there already.
        waits: Vec<usize>,
    },
    /// Another rank sent something else than expected.
    #[error(
        "rank {peer} sent {found} in {operation} (step {step}) where {expected} was expected: the ranks run different programs"
    )]
    Protocol {
        /// The sender.
        peer: usize,
        /// The operation.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// Ranks are in the same operation, but not of the same thing.
    #[error(
        "rank {rank} is in {operation} (step {step}) with {own:016x} and rank {peer} with {found:016x}, which stand for \
         what it is about and all that was attended before: give every rank the same strategy, batch lengths, masks, \
         solver effort, stages with their costs, and gradient wire, and the same calls in the same order"
    )]
    Disagree {
        /// This rank.
        rank: usize,
        /// The other rank.
        peer: usize,
        /// The operation.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
        /// Digest of what this rank works with.
        own: u64,
        /// Digest of what the other rank works with.
        found: u64,
    },
    /// An engine did not start.
    #[error("the ranks did not start: {reason}")]
    NotStarted {
        /// What stood in the way.
        reason: String,
    },
    /// The library that moves an engine's data failed.
    #[error("{engine} failed on rank {rank} in {operation} (step {step}): {reason}")]
    Engine {
        /// The library.
        engine: &'static str,
        /// This rank.
        rank: usize,
        /// The operation.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
        /// What it said.
        reason: String,
    },
    /// A rank that does not exist.
    #[error("rank {rank} does not exist: there are {size}")]
    NoSuchRank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        size: usize,
    },
    /// A message from a rank to itself.
    #[error("rank {rank} exchanges with itself in {operation}: keep the buffer instead of sending it")]
    ToItself {
        /// The rank.
        rank: usize,
        /// The operation.
        operation: &'static str,
    },
    /// Counts that do not fit the ranks or the buffers of a collective.
    #[error("{operation} got {found} {what}, expected {expected}: pass one count per rank, and buffers to match")]
    Counts {
        /// The collective.
        operation: &'static str,
        /// What was counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// What is known of why a rank is silent.
fn why_silent(peer: usize, waits: &[usize]) -> String {
    let Some((last, before)) = waits.split_last() else { return "it is stuck or lost".into() };
    let ranks: Vec<String> = waits.iter().map(|rank| format!("rank {rank}")).collect();
    let end = match *last == peer || before.contains(last) {
        true => "so that they wait for each other",
        false => "which is stuck or lost",
    };
    format!("it waits for {}, {end}", ranks.join(", which waits for "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_says_who_is_stuck() {
        let text = |waits: &[usize]| {
            let waits = waits.to_vec();
            CommError::Deadline { peer: 1, seconds: 5, operation: "ring", step: 2, waits }.to_string()
        };
        let begin = "rank 1 was silent for 5 s in ring (step 2): ";
        assert_eq!(text(&[]), format!("{begin}it is stuck or lost"));
        let chain = "it waits for rank 2, which waits for rank 3, which is stuck or lost";
        assert_eq!(text(&[2, 3]), format!("{begin}{chain}"));
        let circle = "it waits for rank 2, which waits for rank 1, so that they wait for each other";
        assert_eq!(text(&[2, 1]), format!("{begin}{circle}"));
    }
}
