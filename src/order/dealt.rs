//! Orders that are data: token ranges dealt out to ranks by a plan.

use std::ops::Range;

use crate::error::{PlacementError, Result};
use crate::layout::Batch;
use crate::order::contiguous::Contiguous;
use crate::order::line::cut;
use crate::order::zigzag::Chunks;
use crate::order::{LineOrder, Run, TokenOrder};

/// Which rank holds which tokens, as ranges. The table of [`Solved`] and [`Grouped`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dealt {
    /// By rank, ascending.
    held: Vec<Vec<Range<usize>>>,
}

impl Dealt {
    /// Ranges by rank; together they are `0..tokens`, each token once.
    ///
    /// # Errors
    /// [`PlacementError::Cover`] with the first token that no rank or more than one rank holds.
    pub fn new(tokens: usize, parts: &[Vec<Range<usize>>]) -> Result<Self> {
        let ascending = |ranges: &Vec<Range<usize>>| {
            let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
            ranges.sort_unstable_by_key(|range| range.start);
            ranges
        };
        let held: Vec<Vec<Range<usize>>> = parts.iter().map(ascending).collect();
        let mut all: Vec<&Range<usize>> = held.iter().flatten().collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut next = 0;
        for range in all {
            if range.start != next {
                return Err(PlacementError::Cover { token: next.min(range.start), missing: range.start > next }.into());
            }
            next = range.end;
        }
        match next == tokens {
            true => Ok(Dealt { held }),
            false => Err(PlacementError::Cover { token: next.min(tokens), missing: next < tokens }.into()),
        }
    }

    /// One block of rows per rank, whatever the documents.
    fn blocks(batch: &dyn Batch, ranks: usize) -> Self {
        let mut dealt = Dealt { held: vec![Vec::new(); ranks] };
        for (rank, held) in dealt.held.iter_mut().enumerate() {
            <Contiguous as LineOrder>::runs(batch.tokens(), ranks, rank, &mut |run| held.push(run.start..run.end()));
        }
        dealt
    }

    fn runs(&self, batch: &dyn Batch, rank: usize, each: &mut dyn FnMut(Run)) {
        let mut document = 0;
        for held in &self.held[rank] {
            cut(batch, &mut document, Run { start: held.start, step: 1, len: held.len() }, each);
        }
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
    /// The table of a batch whose documents run on these ranks, `(document, ranks)` once per document, in any order.
    /// Spare rows of documents on the same ranks are dealt out in turn.
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
            let chunks = Chunks::new(degree, document.stored, *before);
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
                let rows: usize = table.held.iter().flatten().map(Range::len).sum();
                (table.held.len(), rows) == (ranks, batch.tokens())
            }

            fn runs(batch: &dyn Batch, table: &Dealt, _ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
                table.runs(batch, rank, each);
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

    fn tokens(pack: &Packed, dealt: &Dealt, rank: usize) -> Vec<usize> {
        let mut tokens = Vec::new();
        dealt.runs(pack, rank, &mut |run| tokens.extend(run.iter()));
        tokens
    }

    #[test]
    fn ranges_must_cover_every_token_once() {
        let parts = |parts: &[&[(usize, usize)]]| -> Vec<Vec<Range<usize>>> {
            parts.iter().map(|part| part.iter().map(|&(start, end)| start..end).collect()).collect()
        };
        let dealt = Dealt::new(10, &parts(&[&[(7, 10), (0, 2)], &[], &[(2, 7)]])).unwrap();
        let pack = Packed::from_lengths(&[10]).unwrap();
        assert_eq!(
            [0, 1, 2].map(|rank| tokens(&pack, &dealt, rank)),
            [vec![0, 1, 7, 8, 9], vec![], vec![2, 3, 4, 5, 6]]
        );
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
        let tokens = |rank| tokens(&pack, &dealt, rank);
        assert_eq!(tokens(0), [0, 1, 6, 7], "zigzag on ranks 0 and 1");
        assert_eq!([tokens(1).len(), tokens(2).len()], [4 + 3, 3 + 2]);
        assert!(Grouped::deal(&pack, groups[..3].to_vec(), 3).unwrap_err().to_string().contains("token 11"));
        let message = Grouped::deal(&pack, [(0, 2..4)], 3).unwrap_err().to_string();
        assert!(message.contains("ranks 2..4") && message.contains("3 ranks"), "{message}");
    }
}
