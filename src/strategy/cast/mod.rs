//! Group-cast: each rank receives just the rows of keys and values that its queries attend, in stages.

mod cut;
mod fetches;
mod told;
mod writer;

use std::sync::Arc;

use crate::error::SupportError;
use crate::plan::{Program, RowSet, View};
use crate::solve::stages::Staging;
use crate::strategy::KvExchange;
use cut::{Remote, Solved};
use fetches::{Fetches, Served};
use told::Told;
use writer::Writer;

/// Every owner sends each rank the rows that it needs, packed, straight.
///
/// A rank cuts its remote rows into [`stages`](crate::solve::stages): while it attends one, the next is under way. Its
/// own keys come first, or in a backward pass last where that is quicker. Gradients of a stage go home while the next
/// one is attended, and are added there in a fixed order. Forward and backward passes are cut by themselves.
///
/// A rank solves its own stages. When a plan is made with other ranks it tells them to those that it fetches rows from,
/// in four numbers ([`KvExchange::tells`]), and hears the stages of those that it serves; by itself it solves those
/// too. The programs are the same.
///
/// A stage is attended, merged and sent home at once, or in [parts](crate::solve::stages::Merging) that do not depend
/// on the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CastKv {
    /// How the remote rows are cut.
    pub staging: Staging,
}

impl CastKv {
    /// Cut like this.
    pub fn new(staging: impl Into<Staging>) -> Self {
        CastKv { staging: staging.into() }
    }

    /// The rows that the view's rank fetches.
    fn remote(view: &View) -> Arc<Remote> {
        view.shared(&(Self::NAME, "remote", view.rank()), || Remote::of(view, view.rank()))
    }

    /// The ranks that fetch rows of the view's rank, with those rows, starting with the rank before, which starts with
    /// this one.
    fn serves(view: &View) -> Arc<Vec<(usize, RowSet)>> {
        let (rank, ranks) = (view.rank(), view.ranks());
        view.shared(&(Self::NAME, "serves", rank), || {
            let peers = (1..ranks).map(|i| (rank + ranks - i) % ranks);
            peers.map(|peer| (peer, view.needs(rank, peer))).filter(|(_, needs)| !needs.is_empty()).collect()
        })
    }

    /// How a rank cuts what it fetches.
    fn solved(&self, view: &View, rank: usize) -> Arc<Solved> {
        view.shared(&(Self::NAME, self, "solved", rank), || match rank == view.rank() {
            true => Solved::of(view, rank, &Self::remote(view), &self.staging),
            // Rows of ranks that the program is not for would be much to keep.
            false => Solved::of(view, rank, &Remote::of(view, rank), &self.staging),
        })
    }

    /// What a rank that the view's rank serves tells it; worked out for it if it has not told.
    fn told(&self, view: &View, peer: usize, told: Option<Told>) -> Arc<Option<Told>> {
        view.shared(&(Self::NAME, self, "told", peer, view.rank()), || {
            told.or_else(|| Told::by(&self.solved(view, peer), view.rank()))
        })
    }

    fn program(&self, view: &View, backward: bool) -> Program {
        let (merging, solved) = (self.staging.merging, self.solved(view, view.rank()));
        let spans = solved.spans(merging, backward);
        let mine = Fetches::new(&Self::remote(view), spans, solved.own_last(backward));
        let served = |(peer, needs): &(usize, RowSet)| {
            let told = (*self.told(view, *peer, None))?;
            Some(Served::new(*peer, needs, &told, told.cut.spans(merging, backward)))
        };
        let peers: Vec<Served> = Self::serves(view).iter().filter_map(served).collect();
        Writer::new(view, &mine, &peers, backward).program()
    }
}

impl KvExchange for CastKv {
    const NAME: &'static str = "cast";

    fn check(&self) -> Result<(), SupportError> {
        self.staging.check()
    }

    fn tells(&self, view: &View) -> Vec<(usize, Vec<i64>)> {
        let solved = self.solved(view, view.rank());
        let owners = Self::remote(view);
        let owners = owners.owners.iter().map(|(owner, ..)| *owner);
        owners.filter_map(|owner| Some((owner, Told::by(&solved, owner)?.numbers().to_vec()))).collect()
    }

    fn hears(&self, view: &View) -> Vec<(usize, usize)> {
        Self::serves(view).iter().map(|(peer, _)| (*peer, Told::NUMBERS)).collect()
    }

    fn hear(&self, view: &View, from: usize, numbers: &[i64]) -> Result<(), String> {
        let serves = Self::serves(view);
        let served = serves.iter().find(|(peer, _)| *peer == from);
        let (_, needs) = served.ok_or("nothing of a rank that fetches nothing here")?;
        let most = view.natural_rows() - view.rows(from);
        let told = Told::read(numbers, needs.len(), most, self.staging.merging)?;
        self.told(view, from, Some(told));
        Ok(())
    }

    fn forward(&self, view: &View) -> Program {
        self.program(view, false)
    }

    fn backward(&self, view: &View) -> Program {
        self.program(view, true)
    }
}
