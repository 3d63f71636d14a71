//! A rank's plan as a device takes it: rows and tiles, prepared once and used by every layer and step.

use std::any::Any;
use std::sync::{Arc, PoisonError};

use crate::attention::plan::RankPlan;
use crate::heads::HeadSwap;
use crate::ops::Attends;
use crate::plan::{Program, Step, TileCells, Transfer};

/// Devices that a plan is kept prepared for; the one that it was prepared for first goes first.
const KEPT: usize = 4;

/// What is known of a plan before anything runs, on one device.
#[derive(Debug)]
pub(super) struct Prepared<D: Attends> {
    /// Whose it is; what is prepared may lie in its memory.
    device: D,
    /// Memory row of each valid row of queries, and of keys.
    pub(super) rows: D::Rows,
    pub(super) key_rows: D::Rows,
    /// Of a head exchange: the group's row of each valid row of each member.
    pub(super) members: Vec<D::Rows>,
    /// By step of the programs.
    pub(super) forward: Vec<Ready<D>>,
    pub(super) backward: Vec<Ready<D>>,
}

/// A step as a device takes it.
#[derive(Debug)]
pub(super) enum Ready<D: Attends> {
    /// Of a post: rows to send, and where rows that are received belong, transfer by transfer.
    Rows { sends: Vec<D::Rows>, receives: Vec<D::Rows> },
    /// Of what is attended.
    Tile { cells: TileCells, tiles: D::Tiles },
    /// Nothing to prepare.
    Nothing,
}

impl<D: Attends> Prepared<D> {
    fn new(device: &D, plan: &RankPlan) -> Self {
        let queries = plan.swap.as_ref().map_or(plan.rows.len(), HeadSwap::group_rows);
        let members = plan.swap.iter().flat_map(|swap| &swap.rows);
        let mut tiles = Tiles { device, plan, queries, made: Vec::new() };
        let mut ready = |program: &Program| program.steps.iter().map(|step| tiles.ready(program, step)).collect();
        Prepared {
            rows: device.rows(&plan.rows),
            key_rows: device.rows(&plan.key_rows),
            members: members.map(|rows| device.rows(rows)).collect(),
            forward: ready(&plan.forward),
            backward: ready(&plan.backward),
            device: device.clone(),
        }
    }
}

/// Prepares steps; the backward pass attends tiles of the forward pass again.
struct Tiles<'a, D: Attends> {
    device: &'a D,
    plan: &'a RankPlan,
    queries: usize,
    made: Vec<(TileCells, D::Tiles)>,
}

impl<D: Attends> Tiles<'_, D> {
    fn ready(&mut self, program: &Program, step: &Step) -> Ready<D> {
        let rows = |transfers: &[Transfer]| transfers.iter().map(|transfer| self.device.rows(&transfer.rows)).collect();
        match step {
            Step::Post { sends, receives, .. } => Ready::Rows { sends: rows(sends), receives: rows(receives) },
            Step::Tile { slot, pieces } => {
                let cells = TileCells::new(self.queries, program.slots[*slot], pieces.clone());
                self.tile(cells.with_blocks(self.plan.blocks.clone()))
            }
            Step::Serve { queries, slot, pieces } => {
                self.tile(TileCells::new(program.queries[*queries - 1], program.slots[*slot], pieces.clone()))
            }
            Step::Wait { .. } | Step::Free { .. } | Step::Merge => Ready::Nothing,
        }
    }

    fn tile(&mut self, cells: TileCells) -> Ready<D> {
        let same = |(other, _): &&(TileCells, D::Tiles)| {
            let sizes = |cells: &TileCells| (cells.queries, cells.keys, cells.blocks.len());
            Arc::ptr_eq(&other.pieces, &cells.pieces) && sizes(other) == sizes(&cells)
        };
        let tiles = match self.made.iter().find(same) {
            Some((_, tiles)) => tiles.clone(),
            None => {
                let tiles = self.device.tiles(&cells);
                self.made.push((cells.clone(), tiles.clone()));
                tiles
            }
        };
        Ready::Tile { cells, tiles }
    }
}

impl RankPlan {
    /// Prepares the plan for a device, unless that is done already: what depends on the plan alone is handed to the
    /// device once. The passes do so themselves at the latest.
    pub fn prepare<D: Attends>(&self, device: &D) {
        self.prepared(device);
    }

    /// The plan as `device` takes it.
    pub(super) fn prepared<D: Attends>(&self, device: &D) -> Arc<Prepared<D>> {
        let lock = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |all: &[Arc<dyn Any + Send + Sync>]| {
            let mut found = all.iter().filter_map(|one| one.clone().downcast::<Prepared<D>>().ok());
            // Devices that count on one ledger are one device.
            found.find(|one| Arc::ptr_eq(one.device.ledger(), device.ledger()))
        };
        if let Some(found) = find(&lock()) {
            return found;
        }
        let made = Arc::new(Prepared::new(device, self));
        let mut all = lock();
        if let Some(found) = find(&all) {
            return found;
        }
        if all.len() == KEPT {
            all.remove(0);
        }
        all.push(made.clone());
        made
    }
}
