//! What a rank fetches, part by part, and what others fetch from it.

use std::ops::Range;

use crate::plan::RowSet;
use crate::strategy::cast::cut::{Remote, Spans, clip};
use crate::strategy::cast::told::Told;

/// Rows by owner, in the order in which they lie in a slot.
pub(super) type Part = Vec<(usize, RowSet)>;

/// What a rank fetches.
#[derive(Debug)]
pub(super) struct Fetches {
    /// What is attended at a time.
    pub(super) parts: Vec<Part>,
    /// The parts that travel together.
    pub(super) stages: Vec<Range<usize>>,
    pub(super) own_last: bool,
}

impl Fetches {
    pub(super) fn new(remote: &Remote, Spans { parts, stages }: Spans, own_last: bool) -> Self {
        Fetches { parts: parts.into_iter().map(|rows| remote.part(rows)).collect(), stages, own_last }
    }

    /// The parts whose keys come with an exchange: those of the stage after the one that begins with part `after`.
    pub(super) fn keys(&self, after: Option<usize>) -> Range<usize> {
        stage_after(&self.stages, after)
    }
}

/// What another rank fetches from this one.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) peer: usize,
    /// Own rows in each of its parts.
    parts: Vec<RowSet>,
    /// Its parts that travel together.
    stages: Vec<Range<usize>>,
}

impl Served {
    /// `needs` are the rows that it fetches here, cut as it told.
    pub(super) fn new(peer: usize, needs: &RowSet, told: &Told, Spans { parts, stages }: Spans) -> Self {
        Served { peer, parts: parts.iter().map(|rows| clip(needs, told.first, rows)).collect(), stages }
    }

    /// Number of its parts.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Own rows in some of its parts, one set for each part that has any.
    pub(super) fn rows(&self, parts: Range<usize>) -> impl Iterator<Item = &RowSet> {
        let parts = parts.start.min(self.parts.len())..parts.end.min(self.parts.len());
        self.parts[parts].iter().filter(|rows| !rows.is_empty())
    }

    /// [`Fetches::keys`] of the other rank.
    pub(super) fn keys(&self, after: Option<usize>) -> Range<usize> {
        stage_after(&self.stages, after)
    }
}

/// The stage after the one that begins with part `after`; the first one.
fn stage_after(stages: &[Range<usize>], after: Option<usize>) -> Range<usize> {
    let stage = match after {
        None => Some(0),
        Some(part) => stages.iter().position(|parts| parts.start == part).map(|stage| stage + 1),
    };
    stage.and_then(|stage| stages.get(stage)).cloned().unwrap_or_default()
}
