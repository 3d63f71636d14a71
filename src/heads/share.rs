//! Who exchanges heads with whom, and which heads each gets.

use std::ops::Range;

use crate::error::SupportError;
use crate::heads::{HeadExchange, SwapHeads};
use crate::ops::attention::AttentionShape;
use crate::order::Rows;

/// One member's share of the heads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeadShare {
    /// Its query heads.
    pub(crate) q: Range<usize>,
    /// The key/value heads that they use.
    pub(crate) kv: Range<usize>,
    /// By key/value head of [`HeadShare::shape`]: its index in `kv`. The kernel wants every head to serve equally many
    /// query heads, so a head may be there more than once.
    slots: Vec<usize>,
    /// What the member attends with.
    pub(crate) shape: AttentionShape,
}

impl HeadShare {
    /// The share of `member`, if all `members` have as many query heads.
    fn new(
        strategy: &'static str,
        shape: &AttentionShape,
        members: usize,
        member: usize,
    ) -> Result<Self, SupportError> {
        shape.check()?;
        let (heads, group) = (<SwapHeads>::heads_per_rank(strategy, shape.q_heads, members)?, shape.group());
        let q = member * heads..(member + 1) * heads;
        let kv = q.start / group..(q.end - 1) / group + 1;
        // Stretches of this many query heads never straddle two key/value heads.
        let stretch = greatest_common_divisor(group, heads);
        let slots: Vec<usize> = q.clone().step_by(stretch).map(|head| head / group - kv.start).collect();
        Ok(HeadShare { q, kv, shape: AttentionShape { q_heads: heads, kv_heads: slots.len(), ..*shape }, slots })
    }

    pub(crate) fn q_columns(&self, dim: usize) -> Range<usize> {
        self.q.start * dim..self.q.end * dim
    }

    pub(crate) fn kv_columns(&self, dim: usize) -> Range<usize> {
        self.kv.start * dim..self.kv.end * dim
    }

    /// Columns of the member's keys and values, each head once.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv.len() * (self.shape.qk_dim + self.shape.v_dim)
    }

    /// Columns of its queries, keys and values in a message.
    pub(crate) fn qkv_width(&self) -> usize {
        self.shape.q_width() + self.kv_width()
    }

    /// Blocks of columns as (first in the message's keys and values, first in the kernel's, columns).
    pub(crate) fn blocks(&self) -> Vec<(usize, usize, usize)> {
        let AttentionShape { qk_dim, v_dim, .. } = self.shape;
        if self.slots.iter().copied().eq(0..self.kv.len()) {
            return vec![(0, 0, self.kv_width())];
        }
        let parts = [(0, 0, qk_dim), (self.kv.len() * qk_dim, self.shape.k_width(), v_dim)];
        let slots = || self.slots.iter().enumerate();
        let block = |(from, to, dim)| slots().map(move |(slot, &head)| (from + head * dim, to + slot * dim, dim));
        parts.into_iter().flat_map(block).collect()
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Which ranks exchange heads, and where the rows of each are among those of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadSwap {
    /// Name of the strategy, for errors.
    pub(crate) strategy: &'static str,
    /// Ranks of the communicator, by place in the group.
    pub(crate) members: Vec<usize>,
    /// This rank's place.
    pub(crate) place: usize,
    /// By member: the group's row of each of its valid rows.
    pub(crate) rows: Vec<Rows>,
}

impl HeadSwap {
    /// Rows of the whole group.
    pub(crate) fn group_rows(&self) -> usize {
        self.rows.iter().map(Rows::len).sum()
    }

    /// This rank's share of the heads.
    pub(crate) fn share(&self, shape: &AttentionShape) -> Result<HeadShare, SupportError> {
        HeadShare::new(self.strategy, shape, self.members.len(), self.place)
    }

    /// The shares of all members.
    pub(crate) fn shares(&self, shape: &AttentionShape) -> Result<Vec<HeadShare>, SupportError> {
        let members = self.members.len();
        (0..members).map(|member| HeadShare::new(self.strategy, shape, members, member)).collect()
    }

    /// Bytes to other members: (forward, backward).
    pub(crate) fn bytes_sent(
        &self,
        shape: &AttentionShape,
        elem: usize,
        acc: usize,
    ) -> Result<(usize, usize), SupportError> {
        let (shares, own) = (self.shares(shape)?, self.rows[self.place].len());
        let mine = &shares[self.place];
        let (mut forward, mut backward) = (0, 0);
        for (member, rows) in self.rows.iter().enumerate().filter(|(member, _)| *member != self.place) {
            let (theirs, rows) = (&shares[member], rows.len());
            forward += own * theirs.qkv_width() * elem + rows * mine.shape.out_width() * elem;
            let gradients = mine.shape.q_width() * elem + mine.kv_width() * acc;
            backward += own * theirs.shape.out_width() * elem + rows * gradients;
        }
        Ok((forward, backward))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(q_heads: usize, kv_heads: usize, members: usize) -> Vec<(Range<usize>, Range<usize>, Vec<usize>)> {
        let shape = AttentionShape { q_heads, kv_heads, qk_dim: 2, v_dim: 3, scale: 1.0 };
        let share = |member| HeadShare::new("ulysses", &shape, members, member).unwrap();
        (0..members).map(share).map(|share| (share.q, share.kv, share.slots)).collect()
    }

    #[test]
    fn each_member_has_the_key_value_heads_that_its_queries_use() {
        assert_eq!(shares(8, 4, 2), [(0..4, 0..2, vec![0, 1]), (4..8, 2..4, vec![0, 1])]);
        // Fewer key/value heads than members: neighbours share one.
        assert_eq!(shares(4, 2, 4)[2..], [(2..3, 1..2, vec![0]), (3..4, 1..2, vec![0])]);
        // Three queries to a head, two to a member: the middle member uses both heads.
        assert_eq!(shares(6, 2, 3), [(0..2, 0..1, vec![0, 0]), (2..4, 0..2, vec![0, 1]), (4..6, 1..2, vec![0, 0])]);
    }

    #[test]
    fn heads_that_cannot_be_shared_out_are_refused() {
        assert_eq!(<SwapHeads>::heads_per_rank("ulysses", 8, 4), Ok(2));
        let message = <SwapHeads>::heads_per_rank("ulysses", 8, 3).unwrap_err().to_string();
        assert!(message.contains("8 query heads on 3 ranks") && message.contains("must be a multiple"), "{message}");
        let shape = AttentionShape { q_heads: 8, kv_heads: 2, qk_dim: 2, v_dim: 3, scale: 1.0 };
        let swap = HeadSwap { strategy: "ulysses", members: vec![0, 1, 2], place: 0, rows: vec![Rows::default(); 3] };
        let refused = [swap.share(&shape).map(drop), swap.bytes_sent(&shape, 4, 4).map(drop)];
        for refused in refused {
            assert_eq!(refused, Err(SupportError::Heads { strategy: "ulysses", q_heads: 8, ranks: 3 }));
        }
        assert!(swap.share(&AttentionShape { q_heads: 0, ..shape }).is_err(), "no query heads");
    }
}
