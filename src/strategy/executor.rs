//! The executor: walks through the programs of any strategy, forward and backward.

use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;

use crate::comm::{Accounted, Communicator, Send};
use crate::error::{PlanError, Result};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::plan::{Content, Program, Step, Transfer, Wire};
use crate::strategy::encoding::{AsIs, Encoding};
use crate::strategy::heads::Swapped;
pub use crate::strategy::planned::{AttentionPlan, RankPlan};
use crate::strategy::{Kernel, TileOperands};
use crate::tensor::{AccMatrix, Device, ElemMatrix, Element, Matrix};

/// Names of the exchanges in errors and counters.
const KEYS: &str = "attention keys";
const GRADIENTS: &str = "attention gradients";

/// What the backward pass needs of a forward pass: partial results are kept in the accumulation type.
pub struct AttentionSaved<D: Device, K: Kernel> {
    out: AccMatrix<D>,
    lse: AccMatrix<D>,
    tiles: Vec<K::Saved<D>>,
    /// Queries, keys and values after a head exchange, so that they need not travel again.
    swapped: Option<Swapped<D>>,
}

impl<D: Device, K: Kernel> AttentionSaved<D, K> {
    /// Log-sum-exp of each valid row and head, `[valid rows, q_heads]`; `-inf` where nothing is attended. Zero for
    /// kernels that do not compute it. Under a head exchange, of the group's rows and this rank's heads.
    pub fn lse(&self) -> &AccMatrix<D> {
        &self.lse
    }
}

/// What turns plans into numbers; [`crate::strategy::Supports`] says which one a combination uses.
pub trait Execute<K: Kernel> {
    /// Attention of this rank's queries. `q [rows, q_width]`, `k [rows, k_width]`, `v [rows, v_width]`; returns the
    /// output `[rows, out_width]`, 0 for padding.
    fn forward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [&ElemMatrix<D>; 3],
    ) -> Result<(ElemMatrix<D>, AttentionSaved<D, K>)>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized;

    /// Gradients of queries, keys and values from that of the output. Operands as in [`Execute::forward`].
    fn backward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [&ElemMatrix<D>; 3],
        saved: &AttentionSaved<D, K>,
        dout: &ElemMatrix<D>,
    ) -> Result<[ElemMatrix<D>; 3]>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized;
}

/// Walks through the plan's programs, computing tiles with kernel `K`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executor<K>(PhantomData<K>);

impl<K: Kernel> Execute<K> for Executor<K> {
    fn forward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        [q, k, v]: [&ElemMatrix<D>; 3],
    ) -> Result<(ElemMatrix<D>, AttentionSaved<D, K>)>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized,
    {
        plan.expect::<K>()?;
        let whole = shape;
        let shape = &plan.shape(whole);
        let swapped = match &plan.swap {
            Some(swap) => Some(swap.bring(device, comm, &plan.rows, whole, [q, k, v])?),
            None => None,
        };
        let (queries, kv) = match &swapped {
            Some(Swapped { q, kv }) => (Packed::Original(q), Packed::Original(kv)),
            None => (packed(device, plan, q), Packed::Copy(packed_kv(device, plan, shape, k, v))),
        };
        let rows = queries.matrix().rows();
        let mut walk = Walk::new(device, comm, plan, &plan.forward, shape.kv_width());
        walk.keys[0] = Some(kv);
        let result = || (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
        let (mut out, mut lse): (AccMatrix<D>, AccMatrix<D>) = result();
        let mut part: Option<(AccMatrix<D>, AccMatrix<D>)> = None;
        let mut tiles: Vec<K::Saved<D>> = Vec::new();
        for step in &plan.forward.steps {
            match step {
                Step::Tile { slot, pieces } => {
                    let kv = walk.key_slot(*slot);
                    let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                    let (out, lse) = match tiles.is_empty() {
                        true => (&mut out, &mut lse),
                        false => {
                            let (out, lse) = part.get_or_insert_with(result);
                            (out, lse)
                        }
                    };
                    tiles.push(K::forward(device, tile, out, lse));
                }
                Step::Merge => {
                    let (part_out, part_lse) = part.as_ref().ok_or_else(|| unsound("a merge before a second tile"))?;
                    K::merge(device, shape, &mut out, &mut lse, (part_out, part_lse))?;
                }
                step => walk.step(step)?,
            }
        }
        drop((walk, queries));
        let mut elem = device.to_elem_matrix(&out);
        if let Some(swap) = &plan.swap {
            elem = swap.give_back(device, comm, whole, whole.v_dim, &elem)?;
        }
        let full = unpacked(device, plan, elem);
        Ok((full, AttentionSaved { out, lse, tiles, swapped }))
    }

    fn backward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        [q, k, v]: [&ElemMatrix<D>; 3],
        saved: &AttentionSaved<D, K>,
        dout: &ElemMatrix<D>,
    ) -> Result<[ElemMatrix<D>; 3]>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized,
    {
        let whole = shape;
        let shape = &plan.shape(whole);
        let dout = match &plan.swap {
            Some(swap) => Packed::Copy(swap.bring_output_gradient(device, comm, &plan.rows, whole, dout)?),
            None => packed(device, plan, dout),
        };
        let (queries, kv) = match &saved.swapped {
            Some(Swapped { q, kv }) => (Packed::Original(q), Packed::Original(kv)),
            None => (packed(device, plan, q), Packed::Copy(packed_kv(device, plan, shape, k, v))),
        };
        let delta = device.attention_delta(shape, &saved.out, dout.matrix());
        let mut dq: AccMatrix<D> = device.zero_matrix(queries.matrix().rows(), shape.q_width());
        let mut walk = Walk::new(device, comm, plan, &plan.backward, shape.kv_width());
        walk.keys[0] = Some(kv);
        let (mut tiles, nothing) = (saved.tiles.iter(), K::nothing_saved());
        for step in &plan.backward.steps {
            match step {
                Step::Tile { slot, pieces } => {
                    let of_tile = nothing.as_ref().or_else(|| tiles.next());
                    let of_tile = of_tile.ok_or_else(|| unsound("more tiles backward than forward"))?;
                    let mut dkv = walk.take_gradients(*slot);
                    let kv = walk.key_slot(*slot);
                    let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                    let dout = dout.matrix();
                    K::backward(device, tile, of_tile, &saved.out, &saved.lse, &delta, dout, &mut dq, &mut dkv);
                    walk.gradients[*slot] = Some(dkv);
                }
                Step::Merge => {}
                step => walk.step(step)?,
            }
        }
        let mut home = walk.take_gradients(plan.backward.home);
        let mut dq = device.to_elem_matrix(&dq);
        if let Some(swap) = &plan.swap {
            dq = swap.give_back(device, comm, whole, whole.qk_dim, &dq)?;
            home = swap.return_gradients(device, comm, plan.wire, whole, &home)?;
        }
        let home = device.to_elem_matrix(&home);
        let spread = |columns: usize, first: usize| {
            let mut whole: ElemMatrix<D> = blank(device, plan, columns);
            device.scatter_rows(&home, &plan.rows, &mut whole, first);
            whole
        };
        let (dk, dv) = (spread(whole.k_width(), 0), spread(whole.v_width(), whole.k_width()));
        Ok([unpacked(device, plan, dq), dk, dv])
    }
}

fn unsound(what: &str) -> PlanError {
    PlanError::Unsound { strategy: "executor", what: what.to_string() }
}

/// A matrix of valid rows: packed, or the original where nothing needs moving.
enum Packed<'a, D: Device> {
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

    fn matrix(&self) -> &ElemMatrix<D> {
        match self {
            Packed::Original(matrix) => matrix,
            Packed::Copy(matrix) => matrix,
        }
    }
}

fn packed<'a, D: Ops>(device: &D, plan: &RankPlan, x: &'a ElemMatrix<D>) -> Packed<'a, D> {
    if plan.in_place {
        return Packed::Original(x);
    }
    let mut copy = device.matrix(plan.rows.len(), x.cols());
    device.gather_rows(x, &plan.rows, &mut copy, 0);
    Packed::Copy(copy)
}

fn packed_kv<D: Ops>(
    device: &D,
    plan: &RankPlan,
    shape: &AttentionShape,
    k: &ElemMatrix<D>,
    v: &ElemMatrix<D>,
) -> ElemMatrix<D> {
    let mut kv = device.matrix(plan.rows.len(), shape.kv_width());
    device.gather_rows(k, &plan.rows, &mut kv, 0);
    device.gather_rows(v, &plan.rows, &mut kv, shape.k_width());
    kv
}

/// A matrix of all rows that [`unpacked`] rows are written into: zero where there is padding.
fn blank<D: Ops>(device: &D, plan: &RankPlan, cols: usize) -> ElemMatrix<D> {
    match plan.rows.len() == plan.stored {
        true => device.matrix(plan.stored, cols),
        false => device.zero_matrix(plan.stored, cols),
    }
}

fn unpacked<D: Ops>(device: &D, plan: &RankPlan, x: ElemMatrix<D>) -> ElemMatrix<D> {
    if plan.in_place {
        return x;
    }
    let mut whole = blank(device, plan, x.cols());
    device.scatter_rows(&x, &plan.rows, &mut whole, 0);
    whole
}

/// The slots of a program under way, and its exchanges.
struct Walk<'a, D: Device, C: ?Sized> {
    device: &'a D,
    comm: &'a C,
    program: &'a Program,
    rank: usize,
    /// How gradients travel.
    wire: Wire,
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

impl<'a, D: Ops, C: Communicator<D::Storage> + ?Sized> Walk<'a, D, C> {
    fn new(device: &'a D, comm: &'a C, plan: &RankPlan, program: &'a Program, width: usize) -> Self {
        let slots = program.slots.len();
        let keys = (0..slots).map(|_| None).collect();
        let gradients = (0..slots).map(|_| None).collect();
        let RankPlan { rank, wire, .. } = *plan;
        Walk { device, comm, program, rank, wire, width, keys, gradients, open: HashMap::new() }
    }

    fn key_slot(&mut self, slot: usize) -> &ElemMatrix<D> {
        let new = || Packed::Copy(self.device.matrix(self.program.slots[slot], self.width));
        self.keys[slot].get_or_insert_with(new).matrix()
    }

    fn take_gradients(&mut self, slot: usize) -> AccMatrix<D> {
        let new = || self.device.zero_matrix(self.program.slots[slot], self.width);
        self.gradients[slot].take().unwrap_or_else(new)
    }

    fn step(&mut self, step: &'a Step) -> Result<()> {
        match step {
            Step::Post { exchange, content: Content::Keys, sends, receives } => {
                let slot = |slot: usize| self.keys[slot].as_ref().map(Packed::matrix);
                let (messages, own_keys) = self.pack(AsIs, sends, slot);
                let pending = self.post::<D::Elem>(KEYS, AsIs, messages, receives)?;
                let (content, own_gradients) = (Content::Keys, VecDeque::new());
                self.open.insert(*exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            Step::Post { exchange, content: Content::Gradients, sends, receives } => {
                let slot = |slot: usize| self.gradients[slot].as_ref();
                let (messages, own_gradients) = self.pack(self.wire, sends, slot);
                let pending = self.post::<D::Acc>(GRADIENTS, self.wire, messages, receives)?;
                let (content, own_keys) = (Content::Gradients, VecDeque::new());
                self.open.insert(*exchange, Open { content, receives, pending, own_keys, own_gradients });
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
        encoding: impl Encoding<T, D>,
        sends: &[Transfer],
        slot: impl Fn(usize) -> Option<&'b Matrix<T, D::Storage>>,
    ) -> (Vec<Send<D::Storage>>, VecDeque<Matrix<T, D::Storage>>) {
        let (mut messages, mut own) = (Vec::new(), VecDeque::new());
        for send in sends.iter().filter(|send| !send.rows.is_empty()) {
            let rows = match slot(send.slot) {
                Some(source) => {
                    let mut rows = self.device.matrix(send.rows.len(), self.width);
                    self.device.gather_rows(source, &send.rows, &mut rows, 0);
                    rows
                }
                // Nothing was ever added to these gradients.
                None => self.device.zero_matrix(send.rows.len(), self.width),
            };
            match send.peer == self.rank {
                true => own.push_back(rows),
                false => messages.push(Send { to: send.peer, parcel: encoding.encode(self.device, rows) }),
            }
        }
        (messages, own)
    }

    fn post<T: Element>(
        &self,
        operation: &'static str,
        encoding: impl Encoding<T, D>,
        messages: Vec<Send<D::Storage>>,
        receives: &[Transfer],
    ) -> Result<Accounted<D::Storage>> {
        let expected = receives.iter().filter(|receive| receive.peer != self.rank && !receive.rows.is_empty());
        let expected = expected.map(|receive| encoding.expect(receive.peer, receive.rows.len() * self.width));
        Accounted::post(self.device, self.comm, operation, messages, expected.collect())
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
