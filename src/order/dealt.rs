//! Orders that are data: token ranges dealt out to ranks by a plan.

use std::ops::Range;

use crate::error::{PlacementError, Result};
use crate::layout::Batch;
use crate::order::contiguous::Contiguous;
use crate::order::line::cut;
use crate::order::zigzag::{Before, Chunks};
use crate::order::{LineOrder, Run, TokenOrder};

/// Which rank holds which tokens, as ranges. The table of [`Solved`] and [`Grouped`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dealt {
    /// By rank, ascending.
    held: Vec<Vec<Held>>,
    /// All ranges by their first token: (first token, rank, local index of it).
    owners: Vec<(usize, usize, usize)>,
}

/// A range of tokens of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    start: usize,
    len: usize,
    /// Local index of the first token.
    local: usize,
}

impl Dealt {
    /// Ranges by rank; together they are `0..tokens`, each token once.
    ///
    /// # Errors
    /// [`PlacementError::Cover`] with the first token that no rank or more than one rank holds.
    pub fn new(tokens: usize, parts: &[Vec<Range<usize>>]) -> Result<Self> {
        let mut held = Vec::with_capacity(parts.len());
        let mut owners = Vec::new();
        for (rank, ranges) in parts.iter().enumerate() {
            let mut ranges: Vec<Range<usize>> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
            ranges.sort_unstable_by_key(|range| range.start);
            let (mut own, mut local): (Vec<Held>, usize) = (Vec::with_capacity(ranges.len()), 0);
            for range in ranges {
                owners.push((range.start, rank, local));
                own.push(Held { start: range.start, len: range.len(), local });
                local += range.len();
            }
            held.push(own);
        }
        owners.sort_unstable();
        let mut next = 0;
        for &(start, rank, local) in &owners {
            if start != next {
                return Err(PlacementError::Cover { token: next.min(start), missing: start > next }.into());
            }
            let at = held[rank].partition_point(|held| held.local < local);
            next = start + held[rank][at].len;
        }
        match next == tokens {
            true => Ok(Dealt { held, owners }),
            false => Err(PlacementError::Cover { token: next.min(tokens), missing: next < tokens }.into()),
        }
    }

    /// One block of rows per rank, whatever the documents.
    fn blocks(batch: &dyn Batch, ranks: usize) -> Self {
        let mut dealt = Dealt { held: vec![Vec::new(); ranks], owners: Vec::new() };
        for rank in 0..ranks {
            <Contiguous as LineOrder>::runs(batch.tokens(), ranks, rank, &mut |run| {
                dealt.held[rank].push(Held { start: run.start, len: run.len, local: 0 });
                dealt.owners.push((run.start, rank, 0));
            });
        }
        dealt
    }

    fn rows(&self, rank: usize) -> usize {
        self.held[rank].last().map_or(0, |held| held.local + held.len)
    }

    fn runs(&self, batch: &dyn Batch, rank: usize, each: &mut dyn FnMut(Run)) {
        let mut document = 0;
        for held in &self.held[rank] {
            cut(batch, &mut document, Run { start: held.start, step: 1, len: held.len }, each);
        }
    }

    fn token(&self, rank: usize, local: usize) -> usize {
        let held = self.held[rank][self.held[rank].partition_point(|held| held.local <= local) - 1];
        held.start + local - held.local
    }

    fn locate(&self, token: usize) -> (usize, usize) {
        let (start, rank, local) = self.owners[self.owners.partition_point(|owner| owner.0 <= token) - 1];
        (rank, local + token - start)
    }
}

/// Token ranges as a solver found them for what is attended ([`crate::solve::dispatch`]).
///
/// Made without a strategy, it deals out one block of rows per rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Solved;

/// A block of neighbouring ranks for each document, zigzag inside it ([`crate::solve::schedule`]).
///
/// Made without a strategy, it deals out one block of rows per rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grouped;

impl Grouped {
    /// The table of a batch whose documents run on these ranks, `(document, ranks)` once per document, in any order. Spare
    /// rows of documents on the same ranks are dealt out in turn.
    ///
    /// # Errors
    /// [`PlacementError::Group`] where a group is not within the ranks, [`PlacementError::Cover`] where a document has
    /// no group or two.
    pub fn deal(
        batch: &dyn Batch,
        groups: impl IntoIterator<Item = (usize, Range<usize>)>,
        ranks: usize,
    ) -> Result<Dealt> {
        let mut parts: Vec<Vec<Range<usize>>> = vec![Vec::new(); ranks];
        let mut spare = std::collections::BTreeMap::new();
        for (document, group) in groups {
            let (first, degree) = (group.start, group.len());
            if degree == 0 || group.end > ranks || document >= batch.documents() {
                return Err(PlacementError::Group { document, first, degree, ranks }.into());
            }
            let (document, before) = (batch.document(document), spare.entry((first, degree)).or_insert(0));
            let chunks = Chunks::new(degree, document.stored, Before::with_spare(*before));
            *before += document.stored % (2 * degree);
            for member in 0..degree {
                let range = |(start, len)| document.start + start..document.start + start + len;
                parts[first + member].extend(chunks.of(member).map(range));
            }
        }
        Dealt::new(batch.tokens(), &parts)
    }
}

macro_rules! dealt_order {
    ($order:ty, $name:literal, $from_masks:literal) => {
        impl TokenOrder for $order {
            const NAME: &'static str = $name;
            const FROM_MASKS: bool = $from_masks;
            type Table = Dealt;

            fn table(batch: &dyn Batch, ranks: usize) -> Dealt {
                Dealt::blocks(batch, ranks)
            }

            fn fits(batch: &dyn Batch, table: &Dealt, ranks: usize) -> bool {
                let held = (0..table.held.len()).map(|rank| table.rows(rank));
                (table.held.len(), held.sum::<usize>()) == (ranks, batch.tokens())
            }

            fn rows(_batch: &dyn Batch, table: &Dealt, _ranks: usize, rank: usize) -> usize {
                table.rows(rank)
            }

            fn runs(batch: &dyn Batch, table: &Dealt, _ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
                table.runs(batch, rank, each);
            }

            fn token(_batch: &dyn Batch, table: &Dealt, _ranks: usize, rank: usize, local: usize) -> usize {
                table.token(rank, local)
            }

            fn locate(_batch: &dyn Batch, table: &Dealt, _ranks: usize, token: usize) -> (usize, usize) {
                table.locate(token)
            }
        }
    };
}
dealt_order!(Solved, "solved", true);
dealt_order!(Grouped, "grouped", false);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Packed;

    #[test]
    fn ranges_must_cover_every_token_once() {
        let parts = |parts: &[&[(usize, usize)]]| -> Vec<Vec<Range<usize>>> {
            parts.iter().map(|part| part.iter().map(|&(start, end)| start..end).collect()).collect()
        };
        let dealt = Dealt::new(10, &parts(&[&[(7, 10), (0, 2)], &[], &[(2, 7)]])).unwrap();
        assert_eq!((dealt.rows(0), dealt.rows(1), dealt.rows(2)), (5, 0, 5));
        assert_eq!(Vec::from_iter((0..5).map(|local| dealt.token(0, local))), [0, 1, 7, 8, 9]);
        assert_eq!((dealt.locate(1), dealt.locate(8), dealt.locate(6)), ((0, 1), (0, 3), (2, 4)));
        let refused = |ranges: &[&[(usize, usize)]]| Dealt::new(10, &parts(ranges)).unwrap_err().to_string();
        assert!(refused(&[&[(0, 4)], &[(5, 10)]]).contains("token 4"));
        assert!(refused(&[&[(0, 6)], &[(5, 10)]]).contains("token 5"));
        assert!(refused(&[&[(0, 6)]]).contains("token 6"));
    }

    #[test]
    fn documents_are_dealt_out_within_their_groups() {
        let pack = Packed::from_lengths(&[8, 0, 3, 5]).unwrap();
        let groups = [(0, 0..2), (1, 2..3), (2, 2..3), (3, 1..3)];
        let dealt = Grouped::deal(&pack, groups.clone(), 3).unwrap();
        let tokens = |rank| Vec::from_iter((0..dealt.rows(rank)).map(|local| dealt.token(rank, local)));
        assert_eq!(tokens(0), [0, 1, 6, 7], "zigzag on ranks 0 and 1");
        assert_eq!([tokens(1).len(), tokens(2).len()], [4 + 3, 3 + 2]);
        assert!(Grouped::deal(&pack, groups[..3].to_vec(), 3).unwrap_err().to_string().contains("token 11"));
        let message = Grouped::deal(&pack, [(0, 2..4)], 3).unwrap_err().to_string();
        assert!(message.contains("ranks 2..4") && message.contains("3 ranks"), "{message}");
    }
}
