//! The zigzag order: each document in two chunks per rank, one from each end. Balanced under a causal mask.

use crate::layout::Batch;
use crate::order::{Run, TokenOrder};

/// Each document is cut into `2W` chunks and rank `r` of `W` holds chunks `r` and `2W - 1 - r`.
///
/// This is the order of Megatron-LM and Transformer Engine, which need document lengths that `2W` divides. Here any
/// length works: a document of `L` rows has `q = L div 2W` rows per chunk and `m = L mod 2W` spare rows, which go one
/// each to chunks. All spare rows of a pack are dealt out in turn: the next one goes to the next of `2W` *slots*,
/// slot `s < W` being the first chunk of rank `s` and slot `W + s` its second chunk. So ranks differ by at most one
/// row over the whole pack. In a dense batch every sequence is dealt out alike (one row per sequence).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Zigzag;

/// Spare rows in the slots before `slot` after `spare` of them were dealt out over `slots`.
fn dealt_before(spare: usize, slots: usize, slot: usize) -> usize {
    spare / slots * slot + slot.min(spare % slots)
}

/// How one document is cut.
#[derive(Clone, Copy)]
pub(super) struct Chunks {
    ranks: usize,
    /// Rows of a chunk without spare ones.
    whole: usize,
    /// Spare rows of the document.
    spare: usize,
    /// Spare rows of the documents before it.
    dealt: usize,
}

impl Chunks {
    /// A document of `stored` rows, before which `dealt` spare rows were dealt out.
    pub(super) fn new(ranks: usize, stored: usize, dealt: usize) -> Self {
        Chunks { ranks, whole: stored / (2 * ranks), spare: stored % (2 * ranks), dealt }
    }

    /// The document's spare rows in the slots before `slot`.
    fn spare_before(self, slot: usize) -> usize {
        let slots = 2 * self.ranks;
        dealt_before(self.dealt + self.spare, slots, slot) - dealt_before(self.dealt, slots, slot)
    }

    /// Where chunk `chunk` starts in the document; chunk `2W` starts at the end.
    fn start(self, chunk: usize) -> usize {
        let spare = if chunk <= self.ranks {
            self.spare_before(chunk)
        } else {
            // Chunks from W on are the slots from 2W - 1 down.
            self.spare_before(self.ranks) + self.spare - self.spare_before(3 * self.ranks - chunk)
        };
        chunk * self.whole + spare
    }

    /// The two chunks of `rank` as start and length in the document.
    pub(super) fn of(self, rank: usize) -> [(usize, usize); 2] {
        [rank, 2 * self.ranks - 1 - rank].map(|chunk| {
            let start = self.start(chunk);
            (start, self.start(chunk + 1) - start)
        })
    }
}

impl TokenOrder for Zigzag {
    const NAME: &'static str = "zigzag";

    /// For a pack, how many spare rows are dealt out before each document; nothing for a dense batch.
    type Table = Vec<usize>;

    fn table(batch: &dyn Batch, ranks: usize) -> Vec<usize> {
        if batch.uniform().is_some() {
            return Vec::new();
        }
        let spare = (0..batch.documents()).scan(0, |dealt, index| {
            let before = *dealt;
            *dealt += batch.document(index).stored % (2 * ranks);
            Some(before)
        });
        spare.collect()
    }

    fn runs(batch: &dyn Batch, table: &Vec<usize>, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        for index in 0..batch.documents() {
            let document = batch.document(index);
            let dealt = table.get(index).copied().unwrap_or_default();
            let [first, second] = Chunks::new(ranks, document.stored, dealt).of(rank);
            let start = document.start;
            // Chunks that touch (the last rank's) are one run.
            if first.1 == 0 || first.0 + first.1 == second.0 {
                let len = first.1 + second.1;
                if len > 0 {
                    let from = if first.1 == 0 { second.0 } else { first.0 };
                    each(Run { start: start + from, step: 1, len });
                }
                continue;
            }
            for (from, len) in [first, second] {
                if len > 0 {
                    each(Run { start: start + from, step: 1, len });
                }
            }
        }
    }
}
