//! A walk through a program: its slots, and the exchanges under way.

use std::collections::{HashMap, VecDeque};

use crate::attention::plan::RankPlan;
use crate::attention::wire::{AsIs, Encoding};
use crate::comm::{Accounted, Communicator, Message};
use crate::error::{PlanError, Result};
use crate::ops::Ops;
use crate::plan::{Content, Program, Step, Transfer, Wire};
use crate::tensor::{AccMatrix, Device, ElemMatrix, Element, Matrix};

/// Names of the exchanges in errors and counters.
const KEYS: &str = "attention keys";
const GRADIENTS: &str = "attention gradients";

pub(super) fn unsound(what: &str) -> PlanError {
    PlanError::Unsound { strategy: "executor", what: what.to_string() }
}

/// A matrix of valid rows: packed, or the original where nothing needs moving.
pub(super) enum Packed<'a, D: Device> {
    Original(&'a ElemMatrix<D>),
    Copy(ElemMatrix<D>),
}

impl<D: Device> Packed<'_, D> {
    /// The copy, to write into.
    fn copy_mut(&mut self) -> Option<&mut ElemMatrix<D>> {
        match self {
            Packed::Original(_) => None,
            Packed::Copy(matrix) => Some(matrix),
        }
    }

    pub(super) fn matrix(&self) -> &ElemMatrix<D> {
        match self {
            Packed::Original(matrix) => matrix,
            Packed::Copy(matrix) => matrix,
        }
    }
}

/// The slots of a program under way, and its exchanges.
pub(super) struct Walk<'a, D: Device> {
    device: &'a D,
    comm: &'a dyn Communicator<D::Storage>,
    program: &'a Program,
    rank: usize,
    /// How gradients travel.
    wire: Wire,
    plan: &'a RankPlan,
    width: usize,
    /// Slot 0 may be borrowed; it is never written into.
    keys: Vec<Option<Packed<'a, D>>>,
    gradients: Vec<Option<AccMatrix<D>>>,
    open: HashMap<usize, Open<'a, D>>,
}

/// An exchange under way.
struct Open<'a, D: Device> {
    content: Content,
    receives: &'a [Transfer],
    pending: Accounted<D::Storage>,
    /// What the rank sends itself.
    own_keys: VecDeque<ElemMatrix<D>>,
    own_gradients: VecDeque<AccMatrix<D>>,
}

impl<'a, D: Ops> Walk<'a, D> {
    /// At the start, with the rank's own keys and values in slot 0.
    pub(super) fn new(
        device: &'a D,
        comm: &'a dyn Communicator<D::Storage>,
        plan: &'a RankPlan,
        program: &'a Program,
        own: Packed<'a, D>,
        width: usize,
    ) -> Self {
        let slots = program.slots.len();
        let keys = std::iter::once(Some(own)).chain((1..slots).map(|_| None)).collect();
        let gradients = (0..slots).map(|_| None).collect();
        let RankPlan { rank, wire, .. } = *plan;
        Walk { device, comm, program, rank, wire, plan, width, keys, gradients, open: HashMap::new() }
    }

    /// The keys and values of a slot.
    pub(super) fn key_slot(&mut self, slot: usize) -> &ElemMatrix<D> {
        let new = || Packed::Copy(self.device.matrix(self.program.slots[slot], self.width));
        self.keys[slot].get_or_insert_with(new).matrix()
    }

    /// The gradients of a slot, to be put back; zero where nothing was added yet.
    pub(super) fn take_gradients(&mut self, slot: usize) -> AccMatrix<D> {
        let new = || self.device.zero_matrix(self.program.slots[slot], self.width);
        self.gradients[slot].take().unwrap_or_else(new)
    }

    /// Puts back what was taken.
    pub(super) fn put_gradients(&mut self, slot: usize, gradients: AccMatrix<D>) {
        self.gradients[slot] = Some(gradients);
    }

    /// Any step but tiles and merges.
    pub(super) fn step(&mut self, step: &'a Step) -> Result<()> {
        match step {
            &Step::Post { exchange, content: content @ Content::Keys, ref sends, ref receives } => {
                let slot = |slot: usize| self.keys[slot].as_ref().map(Packed::matrix);
                let (messages, own_keys) = self.pack(content, AsIs, sends, slot)?;
                let pending = self.post::<D::Elem>(KEYS, AsIs, messages, receives)?;
                let own_gradients = VecDeque::new();
                self.open.insert(exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            &Step::Post { exchange, content: content @ Content::Gradients, ref sends, ref receives } => {
                let slot = |slot: usize| self.gradients[slot].as_ref();
                let (messages, own_gradients) = self.pack(content, self.wire, sends, slot)?;
                let pending = self.post::<D::Acc>(GRADIENTS, self.wire, messages, receives)?;
                let own_keys = VecDeque::new();
                self.open.insert(exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            Step::Wait { exchange } => self.wait(*exchange)?,
            Step::Free { slot } => {
                self.keys[*slot] = None;
                if *slot != self.program.home {
                    self.gradients[*slot] = None;
                }
            }
            Step::Tile { .. } | Step::Merge => {}
        }
        Ok(())
    }

    /// Copies the rows to send: messages for other ranks, and what stays here.
    #[allow(clippy::type_complexity)]
    fn pack<'b, T: Element>(
        &self,
        content: Content,
        encoding: impl Encoding<T, D>,
        sends: &[Transfer],
        slot: impl Fn(usize) -> Option<&'b Matrix<T, D::Storage>>,
    ) -> Result<(Vec<Message<D::Storage>>, VecDeque<Matrix<T, D::Storage>>)> {
        let (mut messages, mut own) = (Vec::new(), VecDeque::new());
        for send in sends.iter().filter(|send| !send.rows.is_empty()) {
            let rows = match slot(send.slot) {
                Some(source) => {
                    let mut rows = self.device.matrix(send.rows.len(), self.width);
                    self.device.gather_rows(source, &send.rows, &mut rows, 0);
                    rows
                }
                None if content == Content::Keys => {
                    return Err(unsound("keys sent out of a slot that holds none").into());
                }
                // Nothing was ever added to these gradients.
                None => self.device.zero_matrix(send.rows.len(), self.width),
            };
            match send.peer == self.rank {
                true => own.push_back(rows),
                false => messages.push(Message::new(send.peer, encoding.encode(self.device, rows))),
            }
        }
        Ok((messages, own))
    }

    fn post<T: Element>(
        &self,
        operation: &'static str,
        encoding: impl Encoding<T, D>,
        messages: Vec<Message<D::Storage>>,
        receives: &[Transfer],
    ) -> Result<Accounted<D::Storage>> {
        let expected = receives.iter().filter(|receive| receive.peer != self.rank && !receive.rows.is_empty());
        let expected = expected.map(|receive| encoding.expect(receive.peer, receive.rows.len() * self.width));
        Accounted::post(self.device, self.comm, self.plan.operation(operation), messages, expected.collect())
    }

    fn wait(&mut self, exchange: usize) -> Result<()> {
        let mut exchange = self.open.remove(&exchange).ok_or_else(|| unsound("a wait before its post"))?;
        let mut parcels = exchange.pending.wait()?.parcels.into_iter();
        for receive in exchange.receives.iter().filter(|receive| !receive.rows.is_empty()) {
            let (rows, slot) = (receive.rows.len(), receive.slot);
            let own = receive.peer == self.rank;
            let missing = || unsound("a receive without a message");
            match exchange.content {
                Content::Keys => {
                    let matrix = match own {
                        true => exchange.own_keys.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            AsIs.decode(self.device, parcel, (receive.peer, KEYS), (rows, self.width))?
                        }
                    };
                    let whole = receive.rows.iter().copied().eq(0..self.program.slots[slot]);
                    if whole && self.keys[slot].is_none() {
                        self.keys[slot] = Some(Packed::Copy(matrix));
                        continue;
                    }
                    self.key_slot(slot);
                    let target = self.keys[slot].as_mut().and_then(Packed::copy_mut);
                    let target = target.ok_or_else(|| unsound("keys received into a slot that is borrowed"))?;
                    self.device.scatter_rows(&matrix, &receive.rows, target, 0);
                }
                Content::Gradients => {
                    let matrix = match own {
                        true => exchange.own_gradients.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            self.wire.decode(self.device, parcel, (receive.peer, GRADIENTS), (rows, self.width))?
                        }
                    };
                    let mut target = self.take_gradients(slot);
                    self.device.scatter_add_rows(&matrix, &receive.rows, &mut target);
                    self.gradients[slot] = Some(target);
                }
            }
        }
        Ok(())
    }
}
