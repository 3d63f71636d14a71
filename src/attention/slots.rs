//! A walk through a program: its slots, and the exchanges under way.

use std::collections::{HashMap, VecDeque};

use crate::attention::plan::RankPlan;
use crate::attention::wire::{AsIs, Encoding};
use crate::comm::{Accounted, Communicator, Message};
use crate::error::{PlanError, Result};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::order::Rows;
use crate::plan::{Content, Program, Step, Transfer, Wire};
use crate::tensor::{AccMatrix, Device, ElemMatrix, ElemRef, Element, Matrix, MatrixRef};

/// Names of the exchanges in errors and counters.
const KEYS: &str = "attention keys";
const GRADIENTS: &str = "attention gradients";
const QUERIES: &str = "attention queries";
const RESULTS: &str = "attention results";

pub(super) fn unsound(what: &str) -> PlanError {
    PlanError::Unsound { strategy: "executor", what: what.to_string() }
}

/// Where a receive comes from.
fn sender(receive: &Transfer) -> Result<usize, PlanError> {
    receive.peer().ok_or_else(|| unsound("a receive from other than one rank"))
}

/// A matrix of valid rows: packed, or the original where nothing needs moving.
pub(super) enum Gathered<'a, D: Device> {
    Original(ElemRef<'a, D>),
    Copy(ElemMatrix<D>),
}

impl<D: Device> Gathered<'_, D> {
    /// The copy, to write into.
    fn copy_mut(&mut self) -> Option<&mut ElemMatrix<D>> {
        match self {
            Gathered::Original(_) => None,
            Gathered::Copy(matrix) => Some(matrix),
        }
    }

    pub(super) fn view(&self) -> ElemRef<'_, D> {
        match self {
            Gathered::Original(view) => *view,
            Gathered::Copy(matrix) => matrix.view(),
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
    shape: &'a AttentionShape,
    /// This rank's own queries.
    own_queries: ElemRef<'a, D>,
    /// By slot: queries of other ranks, and what they attended: output, then log-sum-exp.
    asked: Vec<Option<ElemMatrix<D>>>,
    answers: Vec<Option<AccMatrix<D>>>,
    /// Results of other ranks for this rank's queries, to be merged.
    arrived: Vec<(&'a Rows, AccMatrix<D>)>,
    /// Slot 0 may be borrowed; it is never written into.
    keys: Vec<Option<Gathered<'a, D>>>,
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

impl<'a, D: Attends> Walk<'a, D> {
    /// At the start, with the rank's own keys and values in slot 0.
    pub(super) fn new(
        device: &'a D,
        comm: &'a dyn Communicator<D::Storage>,
        plan: &'a RankPlan,
        program: &'a Program,
        own: Gathered<'a, D>,
        own_queries: ElemRef<'a, D>,
        shape: &'a AttentionShape,
    ) -> Self {
        let slots = program.slots.len();
        let keys = std::iter::once(Some(own)).chain((1..slots).map(|_| None)).collect();
        let gradients = (0..slots).map(|_| None).collect();
        let RankPlan { rank, wire, .. } = *plan;
        let served = 1 + program.queries.len();
        let (asked, answers) = ((0..served).map(|_| None).collect(), (0..served).map(|_| None).collect());
        let (arrived, open) = (Vec::new(), HashMap::new());
        Walk {
            device,
            comm,
            program,
            rank,
            wire,
            plan,
            shape,
            own_queries,
            asked,
            answers,
            arrived,
            keys,
            gradients,
            open,
        }
    }

    /// Columns of a row of some content.
    fn width(&self, content: Content) -> usize {
        match content {
            Content::Keys | Content::Gradients => self.shape.kv_width(),
            Content::Queries => self.shape.q_width(),
            Content::Results => self.shape.out_width() + self.shape.q_heads,
        }
    }

    /// Queries of other ranks.
    ///
    /// # Errors
    /// If none have come.
    pub(super) fn asked(&self, slot: usize) -> Result<ElemRef<'_, D>> {
        let asked = self.asked.get(slot).and_then(Option::as_ref);
        asked.map(Matrix::view).ok_or_else(|| unsound("queries served that have not come").into())
    }

    /// Keeps what queries of other ranks attended, until it is sent.
    pub(super) fn answer(&mut self, slot: usize, out: &AccMatrix<D>, lse: &AccMatrix<D>) {
        let every: Vec<usize> = (0..out.rows()).collect();
        let mut answer = self.device.matrix(out.rows(), self.width(Content::Results));
        let (columns, all) = (out.cols(), answer.cols());
        self.device.gather_rows(out.view(), &every, answer.view_mut().column_range(0..columns));
        self.device.gather_rows(lse.view(), &every, answer.view_mut().column_range(columns..all));
        self.answers[slot] = Some(answer);
    }

    /// Results that have come since the last time: the queries' rows, output and log-sum-exp of all own queries, those
    /// that are not among them with nothing attended.
    pub(super) fn arrived(&mut self) -> Vec<(AccMatrix<D>, AccMatrix<D>)> {
        let (rows, heads) = (self.own_queries.rows(), self.shape.q_heads);
        let columns = self.shape.out_width();
        let spread = |(places, part): (&Rows, AccMatrix<D>)| {
            let mut out = self.device.zero_matrix(rows, columns);
            let nothing = vec![num_traits::Float::neg_infinity(); rows * heads];
            let mut lse: AccMatrix<D> = Matrix::new(self.device.upload::<D::Acc>(&nothing), rows, heads);
            let (places, part) = (places.to_vec(), part.view());
            self.device.scatter_rows(part.column_range(0..columns), &places, out.view_mut());
            self.device.scatter_rows(part.column_range(columns..columns + heads), &places, lse.view_mut());
            (out, lse)
        };
        std::mem::take(&mut self.arrived).into_iter().map(spread).collect()
    }

    /// The keys and values of a slot.
    pub(super) fn key_slot(&mut self, slot: usize) -> ElemRef<'_, D> {
        let new = || Gathered::Copy(self.device.matrix(self.program.slots[slot], self.shape.kv_width()));
        self.keys[slot].get_or_insert_with(new).view()
    }

    /// The keys and values of a slot that holds some.
    ///
    /// # Errors
    /// If it holds none.
    pub(super) fn held(&self, slot: usize) -> Result<ElemRef<'_, D>> {
        let held = self.keys.get(slot).and_then(Option::as_ref);
        held.map(Gathered::view).ok_or_else(|| unsound("queries served from a slot that holds no keys").into())
    }

    /// The gradients of a slot, to be put back; zero where nothing was added yet.
    pub(super) fn take_gradients(&mut self, slot: usize) -> AccMatrix<D> {
        let new = || self.device.zero_matrix(self.program.slots[slot], self.shape.kv_width());
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
                let slot = |slot: usize| self.keys[slot].as_ref().map(Gathered::view);
                let (messages, own_keys) = self.pack(content, AsIs, sends, slot)?;
                let pending = self.post::<D::Elem>((KEYS, exchange, content), AsIs, messages, receives)?;
                let own_gradients = VecDeque::new();
                self.open.insert(exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            &Step::Post { exchange, content: content @ Content::Gradients, ref sends, ref receives } => {
                let slot = |slot: usize| self.gradients[slot].as_ref().map(Matrix::view);
                let (messages, own_gradients) = self.pack(content, self.wire, sends, slot)?;
                let pending = self.post::<D::Acc>((GRADIENTS, exchange, content), self.wire, messages, receives)?;
                let own_keys = VecDeque::new();
                self.open.insert(exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            &Step::Post { exchange, content: content @ Content::Queries, ref sends, ref receives } => {
                let asked = |slot: usize| self.asked[slot].as_ref().map(Matrix::view);
                let slot = |slot: usize| if slot == 0 { Some(self.own_queries) } else { asked(slot) };
                let (messages, own_keys) = self.pack(content, AsIs, sends, slot)?;
                let pending = self.post::<D::Elem>((QUERIES, exchange, content), AsIs, messages, receives)?;
                let own_gradients = VecDeque::new();
                self.open.insert(exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            &Step::Post { exchange, content: content @ Content::Results, ref sends, ref receives } => {
                let slot = |slot: usize| self.answers[slot].as_ref().map(Matrix::view);
                let (messages, own_gradients) = self.pack(content, AsIs, sends, slot)?;
                let pending = self.post::<D::Acc>((RESULTS, exchange, content), AsIs, messages, receives)?;
                sends.iter().for_each(|send| {
                    (self.asked[send.slot], self.answers[send.slot]) = (None, None);
                });
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
            Step::Tile { .. } | Step::Serve { .. } | Step::Merge => {}
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
        slot: impl Fn(usize) -> Option<MatrixRef<'b, T, D::Storage>>,
    ) -> Result<(Vec<Message<D::Storage>>, VecDeque<Matrix<T, D::Storage>>)> {
        let (mut messages, mut own) = (Vec::new(), VecDeque::new());
        for send in sends.iter().filter(|send| !send.rows.is_empty()) {
            let list = send.rows.to_vec();
            let copy = || -> Result<Matrix<T, D::Storage>> {
                match slot(send.slot) {
                    Some(source) => {
                        let mut rows = self.device.matrix(list.len(), self.width(content));
                        self.device.gather_rows(source, &list, rows.view_mut());
                        Ok(rows)
                    }
                    // Nothing was ever added to these gradients.
                    None if content == Content::Gradients => {
                        Ok(self.device.zero_matrix(list.len(), self.width(content)))
                    }
                    None => Err(unsound("rows sent out of a slot that holds none").into()),
                }
            };
            // Peers that get the same share one copy.
            let peers = send.peers.as_slice();
            let others: Vec<usize> = peers.iter().copied().filter(|&peer| peer != self.rank).collect();
            for _ in others.len()..peers.len() {
                own.push_back(copy()?);
            }
            if !others.is_empty() {
                messages.push(Message::new(others, encoding.encode(self.device, copy()?)));
            }
        }
        Ok((messages, own))
    }

    fn post<T: Element>(
        &self,
        (name, exchange, content): (&'static str, usize, Content),
        encoding: impl Encoding<T, D>,
        messages: Vec<Message<D::Storage>>,
        receives: &[Transfer],
    ) -> Result<Accounted<D::Storage>> {
        let mut expected = Vec::with_capacity(receives.len());
        for receive in receives.iter().filter(|receive| !receive.rows.is_empty()) {
            let peer = sender(receive)?;
            if peer != self.rank {
                expected.push(encoding.expect(peer, receive.rows.len() * self.width(content)));
            }
        }
        Accounted::post(self.device, self.comm, self.plan.exchange(name, exchange), messages, expected)
    }

    fn wait(&mut self, exchange: usize) -> Result<()> {
        let mut exchange = self.open.remove(&exchange).ok_or_else(|| unsound("a wait before its post"))?;
        let mut parcels = exchange.pending.wait()?.parcels.into_iter();
        for receive in exchange.receives.iter().filter(|receive| !receive.rows.is_empty()) {
            let (rows, slot) = (receive.rows.len(), receive.slot);
            let peer = sender(receive)?;
            let own = peer == self.rank;
            let missing = || unsound("a receive without a message");
            let width = self.width(exchange.content);
            match exchange.content {
                Content::Keys => {
                    let matrix = match own {
                        true => exchange.own_keys.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            AsIs.decode(self.device, parcel, (peer, KEYS), (rows, width))?
                        }
                    };
                    let whole = receive.rows.are_all(self.program.slots[slot]);
                    if whole && self.keys[slot].is_none() {
                        self.keys[slot] = Some(Gathered::Copy(matrix));
                        continue;
                    }
                    self.key_slot(slot);
                    let target = self.keys[slot].as_mut().and_then(Gathered::copy_mut);
                    let target = target.ok_or_else(|| unsound("keys received into a slot that is borrowed"))?;
                    self.device.scatter_rows(matrix.view(), &receive.rows.to_vec(), target.view_mut());
                }
                Content::Gradients => {
                    let matrix = match own {
                        true => exchange.own_gradients.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            self.wire.decode(self.device, parcel, (peer, GRADIENTS), (rows, width))?
                        }
                    };
                    let mut target = self.take_gradients(slot);
                    self.device.scatter_add_rows(matrix.view(), &receive.rows.to_vec(), target.view_mut());
                    self.gradients[slot] = Some(target);
                }
                Content::Queries => {
                    let matrix = match own {
                        true => exchange.own_keys.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            AsIs.decode(self.device, parcel, (peer, QUERIES), (rows, width))?
                        }
                    };
                    let total = self.program.queries[slot - 1];
                    let mut asked = self.asked[slot].take().unwrap_or_else(|| self.device.matrix(total, width));
                    self.device.scatter_rows(matrix.view(), &receive.rows.to_vec(), asked.view_mut());
                    self.asked[slot] = Some(asked);
                }
                Content::Results => {
                    let matrix = match own {
                        true => exchange.own_gradients.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            AsIs.decode(self.device, parcel, (peer, RESULTS), (rows, width))?
                        }
                    };
                    self.arrived.push((&receive.rows, matrix));
                }
            }
        }
        Ok(())
    }
}
