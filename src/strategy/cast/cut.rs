//! How a rank cuts the rows that it fetches: into stages, for each direction by itself.

use std::ops::Range;

use crate::plan::{Piece, RowSet, View, area_by_keys};
use crate::solve::stages::{Atom, Merging, StageCosts, Staging, Work, best};

/// Rows of other ranks that a rank attends.
#[derive(Debug)]
pub(super) struct Remote {
    /// Their owners, each with its first row in a buffer of all of them, and the rows.
    pub(super) owners: Vec<(usize, usize, RowSet)>,
    /// Rows of that buffer.
    rows: usize,
}

impl Remote {
    pub(super) fn of(view: &View, rank: usize) -> Self {
        let ranks = view.ranks();
        let (mut owners, mut rows) = (Vec::new(), 0);
        // Starting with the next rank, so that not all ask the same one first.
        for owner in (1..ranks).map(|i| (rank + i) % ranks) {
            let needs = view.needs(owner, rank);
            if !needs.is_empty() {
                let first = rows;
                rows += needs.len();
                owners.push((owner, first, needs));
            }
        }
        Remote { owners, rows }
    }

    /// Rows of the buffer, by owner.
    pub(super) fn part(&self, rows: Range<usize>) -> Vec<(usize, RowSet)> {
        let of_owner = |(owner, first, needs): &(usize, usize, RowSet)| {
            let of_owner = clip(needs, *first, &rows);
            (!of_owner.is_empty()).then_some((*owner, of_owner))
        };
        self.owners.iter().filter_map(of_owner).collect()
    }
}

/// Those of an owner's rows, the first of which is row `first` of a buffer, that are among these rows of the buffer.
pub(super) fn clip(needs: &RowSet, first: usize, rows: &Range<usize>) -> RowSet {
    needs.at_places(rows.start.saturating_sub(first)..rows.end.saturating_sub(first))
}

/// A buffer of remote rows in equal atoms, as many as [`Merging::parts`] says and as there are rows, and where stages
/// of them end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Rows of the buffer.
    pub(super) rows: usize,
    /// In a forward and in a backward pass: bit `i` says that a stage ends with atom `i`.
    pub(super) ends: [u64; 2],
}

/// A [`Cut`] in one direction, in rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spans {
    /// What is attended at a time, as rows of the buffer.
    pub(super) parts: Vec<Range<usize>>,
    /// The parts that travel together.
    pub(super) stages: Vec<Range<usize>>,
}

impl Cut {
    /// Where the atoms end, in rows.
    fn atoms(rows: usize, merging: Merging) -> impl Iterator<Item = usize> + Clone {
        let atoms = merging.parts().min(rows);
        (1..=atoms).map(move |atom| atom * rows / atoms)
    }

    pub(super) fn spans(&self, merging: Merging, backward: bool) -> Spans {
        let ends = self.ends[usize::from(backward)];
        let is_end = |atom: usize| ends >> atom & 1 == 1;
        let atoms: Vec<usize> = Cut::atoms(self.rows, merging).collect();
        let last = (0..atoms.len()).filter(|&atom| is_end(atom));
        match merging {
            Merging::Stages => {
                let parts = ranges(last.map(|atom| atoms[atom]));
                let stages = (0..parts.len()).map(|stage| stage..stage + 1).collect();
                Spans { parts, stages }
            }
            Merging::Parts(_) => {
                let stages = ranges(last.map(|atom| atom + 1));
                Spans { parts: ranges(atoms.into_iter()), stages }
            }
        }
    }
}

/// Ranges from 0 on with these ends.
fn ranges(ends: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut start = 0;
    ends.map(|end| std::mem::replace(&mut start, end)..end).collect()
}

/// The cuts that a rank found best.
#[derive(Debug)]
pub(super) struct Solved {
    cut: Cut,
    /// Whether the rank's own keys are attended after all others, in a forward and in a backward pass.
    own_last: [bool; 2],
    /// The first row of each owner in the buffer, by owner.
    firsts: Vec<(usize, usize)>,
}

impl Solved {
    pub(super) fn of(view: &View, rank: usize, remote: &Remote, staging: &Staging) -> Self {
        let Staging { count, merging, forward, backward } = staging;
        let runs: Vec<_> =
            remote.owners.iter().flat_map(|(owner, first, needs)| view.runs(*owner, needs, *first)).collect();
        let ends: Vec<usize> = Cut::atoms(remote.rows, *merging).collect();
        let areas = area_by_keys(&view.seen_from(rank).tile_runs(&runs), &ends);
        let atom = |(rows, area): (Range<usize>, u64)| Atom { rows: rows.len(), area };
        let atoms: Vec<Atom> = ranges(ends.into_iter()).into_iter().zip(areas).map(atom).collect();
        let own_area = view.seen_from(rank).tile_runs(view.held(rank)).iter().map(Piece::area).sum();
        let work = Work { queries: view.query_rows(rank), own_area, atoms: &atoms };
        // Nothing returns in a forward pass, whose first tile is that of the own keys.
        let costs = [StageCosts { returned: 0, ..*forward }, *backward];
        let stages = costs.map(|costs| best(&work, &costs, *count, *merging));
        let ends = stages.each_ref().map(|stages| stages.cuts.iter().map(|cut| 1 << (cut.end - 1)).sum());
        let mut firsts: Vec<_> = remote.owners.iter().map(|(owner, first, _)| (*owner, *first)).collect();
        firsts.sort_unstable();
        Solved { cut: Cut { rows: remote.rows, ends }, own_last: stages.map(|stages| stages.own_last), firsts }
    }

    pub(super) fn spans(&self, merging: Merging, backward: bool) -> Spans {
        self.cut.spans(merging, backward)
    }

    pub(super) fn own_last(&self, backward: bool) -> bool {
        self.own_last[usize::from(backward)]
    }

    /// The rows and their stages.
    pub(super) fn cut(&self) -> Cut {
        self.cut
    }

    /// The first row of `owner` in the buffer, if the rank fetches rows of it.
    pub(super) fn first_row(&self, owner: usize) -> Option<usize> {
        let at = self.firsts.binary_search_by_key(&owner, |(owner, _)| *owner).ok()?;
        Some(self.firsts[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_made_of_atoms_that_are_equal_as_far_as_rows_go() {
        let cut = Cut { rows: 10, ends: [0b110, 0b111] };
        let spans = |merging, backward| {
            let Spans { parts, stages } = cut.spans(merging, backward);
            (parts, stages)
        };
        let parts = vec![0..3, 3..6, 6..10];
        assert_eq!(spans(Merging::Parts(3), false), (parts.clone(), vec![0..2, 2..3]));
        assert_eq!(spans(Merging::Parts(3), true), (parts, vec![0..1, 1..2, 2..3]));
        // Ten rows have ten atoms.
        let cut = Cut { rows: 10, ends: [0b10_0000_1000, 0] };
        let spans = cut.spans(Merging::Stages, false);
        assert_eq!((spans.parts, spans.stages), (vec![0..4, 4..10], vec![0..1, 1..2]));
        let nothing = Cut { rows: 0, ends: [0; 2] };
        assert_eq!(nothing.spans(Merging::Parts(3), true), Spans { parts: vec![], stages: vec![] });
    }
}
