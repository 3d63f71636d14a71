//! A walk through a program: the exchanges under way, and the slots that they fill.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};

use crate::attention::prepared::Ready;
use crate::attention::slots::{Slots, unsound};
use crate::attention::wire::{AsIs, Encoding};
use crate::comm::{Accounted, Communicator, Message, Receive};
use crate::error::{PlanError, Result};
use crate::ops::Attends;
use crate::plan::{Content, Step, Transfer, Wire};
use crate::tensor::{AccMatrix, Device, ElemMatrix, Element, Matrix, MatrixRef};

/// Name of an exchange in errors and counters.
fn name(content: Content) -> &'static str {
    match content {
        Content::Keys => "attention keys",
        Content::Gradients => "attention gradients",
        Content::Queries => "attention queries",
        Content::Results => "attention results",
    }
}

/// Where a receive comes from.
fn sender(receive: &Transfer) -> Result<usize, PlanError> {
    receive.peer().ok_or_else(|| unsound("a receive from other than one rank"))
}

/// Transfers that are not empty, with their rows as the device takes them.
fn filled<'a, R>(transfers: &'a [Transfer], rows: &'a [R]) -> impl Iterator<Item = (&'a Transfer, &'a R)> {
    transfers.iter().zip(rows).filter(|(transfer, _)| !transfer.rows.is_empty())
}

/// Matrices that a rank sends itself, in the order in which it receives them.
type Own<T, D> = VecDeque<Matrix<T, <D as Device>::Storage>>;

/// A walk through a program.
pub(super) struct Walk<'a, D: Attends> {
    comm: &'a dyn Communicator<D::Storage>,
    slots: Slots<'a, D>,
    open: HashMap<usize, Open<'a, D>>,
    /// Results of other ranks for this rank's queries, to be merged: the queries' rows, output and log-sum-exp.
    arrived: Vec<(&'a D::Rows, AccMatrix<D>)>,
}

/// An exchange under way.
struct Open<'a, D: Attends> {
    content: Content,
    receives: &'a [Transfer],
    rows: &'a [D::Rows],
    pending: Accounted<D::Storage>,
    /// What the rank sends itself.
    own_stored: Own<D::Elem, D>,
    own_summed: Own<D::Acc, D>,
}

impl<'a, D: Attends> Deref for Walk<'a, D> {
    type Target = Slots<'a, D>;

    fn deref(&self) -> &Slots<'a, D> {
        &self.slots
    }
}

impl<D: Attends> DerefMut for Walk<'_, D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.slots
    }
}

impl<'a, D: Attends> Walk<'a, D> {
    pub(super) fn new(comm: &'a dyn Communicator<D::Storage>, slots: Slots<'a, D>) -> Self {
        Walk { comm, slots, open: HashMap::new(), arrived: Vec::new() }
    }

    /// Results that have come since the last time, as [`Slots::spread`] gives them.
    pub(super) fn arrived(&mut self) -> impl Iterator<Item = (AccMatrix<D>, AccMatrix<D>)> {
        let slots = &self.slots;
        self.arrived.drain(..).map(|(rows, part)| slots.spread(rows, &part))
    }

    /// Any step but tiles and merges.
    pub(super) fn step(&mut self, step: &'a Step, ready: &'a Ready<D>) -> Result<()> {
        match (step, ready) {
            (Step::Post { exchange, content, sends, receives }, Ready::Rows { sends: leaving, receives: coming }) => {
                let open = self.post((*exchange, *content), filled(sends, leaving), (receives, coming))?;
                if *content == Content::Results {
                    sends.iter().for_each(|send| self.slots.answered(send.slot));
                }
                self.open.insert(*exchange, open);
            }
            (Step::Wait { exchange }, _) => self.wait(*exchange)?,
            (Step::Free { slot }, _) => self.slots.free(*slot),
            (Step::Tile { .. } | Step::Serve { .. } | Step::Merge | Step::Post { .. }, _) => {
                return Err(unsound("a step that was not prepared").into());
            }
        }
        Ok(())
    }

    /// In what numbers sums travel: gradients as the plan says.
    fn wire(&self, content: Content) -> Wire {
        if content == Content::Gradients { self.plan.wire } else { Wire::Accumulated }
    }

    fn post(
        &self,
        (exchange, content): (usize, Content),
        sends: impl Iterator<Item = (&'a Transfer, &'a D::Rows)>,
        (receives, rows): (&'a [Transfer], &'a [D::Rows]),
    ) -> Result<Open<'a, D>> {
        let (mut own_stored, mut own_summed) = (VecDeque::new(), VecDeque::new());
        let (messages, expected) = match content {
            Content::Keys | Content::Queries => {
                let source = |slot| self.slots.stored(content, slot);
                let messages = self.pack(content, AsIs, sends, source, &mut own_stored)?;
                (messages, self.expected::<D::Elem>(content, AsIs, receives)?)
            }
            Content::Gradients | Content::Results => {
                let (wire, source) = (self.wire(content), |slot| self.slots.summed(content, slot));
                let messages = self.pack(content, wire, sends, source, &mut own_summed)?;
                (messages, self.expected::<D::Acc>(content, wire, receives)?)
            }
        };
        let operation = self.plan.exchange(name(content), exchange);
        let pending = Accounted::post(self.device, self.comm, operation, messages, expected)?;
        Ok(Open { content, receives, rows, pending, own_stored, own_summed })
    }

    /// Copies the rows to send: messages for other ranks, and what stays here.
    fn pack<'b, T: Element>(
        &self,
        content: Content,
        encoding: impl Encoding<T, D>,
        sends: impl Iterator<Item = (&'a Transfer, &'a D::Rows)>,
        source: impl Fn(usize) -> Option<MatrixRef<'b, T, D::Storage>>,
        own: &mut Own<T, D>,
    ) -> Result<Vec<Message<D::Storage>>> {
        let mut messages = Vec::new();
        for (send, rows) in sends {
            let (count, width) = (send.rows.len(), self.width(content));
            let copy = || -> Result<Matrix<T, D::Storage>> {
                match source(send.slot) {
                    Some(source) => {
                        let mut copy = self.device.matrix(count, width);
                        self.device.gather_rows(source, rows, copy.view_mut());
                        Ok(copy)
                    }
                    // Nothing was ever added to these gradients.
                    None if content == Content::Gradients => Ok(self.device.zero_matrix(count, width)),
                    None => Err(unsound("rows sent out of a slot that holds none").into()),
                }
            };
            // Peers that get the same share one copy.
            let (peers, rank) = (send.peers.as_slice(), self.plan.rank);
            let others: Vec<usize> = peers.iter().copied().filter(|&peer| peer != rank).collect();
            for _ in others.len()..peers.len() {
                own.push_back(copy()?);
            }
            if !others.is_empty() {
                messages.push(Message::new(others, encoding.encode(self.device, copy()?)));
            }
        }
        Ok(messages)
    }

    fn expected<T: Element>(
        &self,
        content: Content,
        encoding: impl Encoding<T, D>,
        receives: &[Transfer],
    ) -> Result<Vec<Receive>> {
        let mut expected = Vec::with_capacity(receives.len());
        for receive in receives.iter().filter(|receive| !receive.rows.is_empty()) {
            let peer = sender(receive)?;
            if peer != self.plan.rank {
                expected.push(encoding.expect(peer, receive.rows.len() * self.width(content)));
            }
        }
        Ok(expected)
    }

    fn wait(&mut self, exchange: usize) -> Result<()> {
        let Open { content, receives, rows, pending, mut own_stored, mut own_summed } =
            self.open.remove(&exchange).ok_or_else(|| unsound("a wait before its post"))?;
        let mut parcels = pending.wait()?.parcels.into_iter();
        let (device, wire, width) = (self.device, self.wire(content), self.width(content));
        for (receive, rows) in filled(receives, rows) {
            let (slot, shape) = (receive.slot, (receive.rows.len(), width));
            let peer = sender(receive)?;
            let own = peer == self.plan.rank;
            let missing = || unsound("a receive without a message");
            let mut parcel = || parcels.next().ok_or_else(missing);
            match content {
                Content::Keys | Content::Queries => {
                    let matrix: ElemMatrix<D> = match own {
                        true => own_stored.pop_front().ok_or_else(missing)?,
                        false => AsIs.decode(device, parcel()?, (peer, name(content)), shape)?,
                    };
                    self.slots.bring(content, receive, rows, matrix)?;
                }
                Content::Gradients | Content::Results => {
                    let matrix: AccMatrix<D> = match own {
                        true => own_summed.pop_front().ok_or_else(missing)?,
                        false => wire.decode(device, parcel()?, (peer, name(content)), shape)?,
                    };
                    if content == Content::Results {
                        self.arrived.push((rows, matrix));
                        continue;
                    }
                    let mut target = self.slots.take_gradients(slot);
                    device.scatter_add_rows(matrix.view(), rows, target.view_mut());
                    self.slots.put_gradients(slot, target);
                }
            }
        }
        Ok(())
    }
}
