//! The slots of a program under way: rows of keys, gradients and queries, by the numbers that the program gives them.

use crate::attention::plan::RankPlan;
use crate::error::{PlanError, Result};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::plan::{Content, Program, Transfer};
use crate::tensor::{AccMatrix, AccRef, Device, ElemMatrix, ElemRef, Matrix};

pub(super) fn unsound(what: &str) -> PlanError {
    PlanError::Unsound { strategy: "executor", what: what.to_string() }
}

/// A matrix of valid rows: packed, or the original where nothing needs moving.
pub(super) enum Gathered<'a, D: Device> {
    Original(ElemRef<'a, D>),
    Copy(ElemMatrix<D>),
}

impl<D: Device> Gathered<'_, D> {
    pub(super) fn view(&self) -> ElemRef<'_, D> {
        match self {
            Gathered::Original(view) => *view,
            Gathered::Copy(matrix) => matrix.view(),
        }
    }
}

/// What slots hold; the first one, which every program has, lies with its owner.
struct Numbered<M> {
    first: Option<M>,
    others: Vec<Option<M>>,
}

impl<M> Numbered<M> {
    fn new(slots: usize) -> Self {
        Numbered { first: None, others: (1..slots).map(|_| None).collect() }
    }

    fn get(&self, slot: usize) -> Option<&M> {
        match slot {
            0 => self.first.as_ref(),
            _ => self.others.get(slot - 1)?.as_ref(),
        }
    }

    fn at(&mut self, slot: usize) -> &mut Option<M> {
        match slot {
            0 => &mut self.first,
            _ => &mut self.others[slot - 1],
        }
    }
}

/// The slots of a program under way.
pub(super) struct Slots<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) plan: &'a RankPlan,
    program: &'a Program,
    shape: &'a AttentionShape,
    /// This rank's own queries, and its keys in slot 0, which are never written into.
    own_queries: ElemRef<'a, D>,
    own_keys: Option<Gathered<'a, D>>,
    keys: Numbered<ElemMatrix<D>>,
    gradients: Numbered<AccMatrix<D>>,
    /// Queries of other ranks, from slot 1 on, and what they attended: output, then log-sum-exp.
    asked: Numbered<ElemMatrix<D>>,
    answers: Numbered<AccMatrix<D>>,
}

impl<'a, D: Attends> Slots<'a, D> {
    /// At the start, with the rank's own keys and values in slot 0.
    pub(super) fn new(
        device: &'a D,
        plan: &'a RankPlan,
        program: &'a Program,
        own_keys: Gathered<'a, D>,
        own_queries: ElemRef<'a, D>,
        shape: &'a AttentionShape,
    ) -> Self {
        let (slots, served) = (program.slots.len(), 1 + program.queries.len());
        Slots {
            device,
            plan,
            program,
            shape,
            own_queries,
            own_keys: Some(own_keys),
            keys: Numbered::new(slots),
            gradients: Numbered::new(slots),
            asked: Numbered::new(served),
            answers: Numbered::new(served),
        }
    }

    /// Columns of a row of some content.
    pub(super) fn width(&self, content: Content) -> usize {
        match content {
            Content::Keys | Content::Gradients => self.shape.kv_width(),
            Content::Queries => self.shape.q_width(),
            Content::Results => self.shape.out_width() + self.shape.q_heads,
        }
    }

    /// Keys or queries of a slot, if it holds any.
    pub(super) fn stored(&self, content: Content, slot: usize) -> Option<ElemRef<'_, D>> {
        match (content, slot) {
            (Content::Keys, 0) if self.own_keys.is_some() => self.own_keys.as_ref().map(Gathered::view),
            (Content::Keys, _) => self.keys.get(slot).map(Matrix::view),
            (_, 0) => Some(self.own_queries),
            _ => self.asked.get(slot).map(Matrix::view),
        }
    }

    /// Gradients or results of a slot, if it holds any.
    pub(super) fn summed(&self, content: Content, slot: usize) -> Option<AccRef<'_, D>> {
        match content {
            Content::Gradients => self.gradients.get(slot).map(Matrix::view),
            _ => self.answers.get(slot).map(Matrix::view),
        }
    }

    /// Keys or queries of another rank come into a slot, into `rows` of it.
    ///
    /// # Errors
    /// If the slot holds the rank's own, which are borrowed.
    pub(super) fn bring(
        &mut self,
        content: Content,
        receive: &Transfer,
        rows: &D::Rows,
        matrix: ElemMatrix<D>,
    ) -> Result<()> {
        let slot = receive.slot;
        let total = match (content, slot) {
            (Content::Keys, 0) if self.own_keys.is_some() => {
                return Err(unsound("keys received into the slot of the rank's own").into());
            }
            (Content::Keys, _) => self.program.slots[slot],
            (_, 0) => return Err(unsound("queries received into the slot of the rank's own").into()),
            _ => self.program.queries[slot - 1],
        };
        let held = match content {
            Content::Keys => self.keys.at(slot),
            _ => self.asked.at(slot),
        };
        if held.is_none() && receive.rows.are_all(total) {
            *held = Some(matrix);
            return Ok(());
        }
        // Kernels load whole tiles, with rows that no piece has and that may not have come yet: 0 times NaN is NaN.
        let held = held.get_or_insert_with(|| self.device.zero_matrix(total, matrix.cols()));
        self.device.scatter_rows(matrix.view(), rows, held.view_mut());
        Ok(())
    }

    /// Queries of other ranks.
    ///
    /// # Errors
    /// If none have come.
    pub(super) fn asked(&self, slot: usize) -> Result<ElemRef<'_, D>> {
        let asked = self.asked.get(slot).map(Matrix::view);
        asked.ok_or_else(|| unsound("queries served that have not come").into())
    }

    /// Keeps what queries of other ranks attended, until it is sent.
    pub(super) fn answer(&mut self, slot: usize, out: &AccMatrix<D>, lse: &AccMatrix<D>) {
        let mut answer = self.device.matrix(out.rows(), self.width(Content::Results));
        let (columns, all) = (out.cols(), answer.cols());
        self.device.copy(out.view(), answer.view_mut().column_range(0..columns));
        self.device.copy(lse.view(), answer.view_mut().column_range(columns..all));
        *self.answers.at(slot) = Some(answer);
    }

    /// Queries that were answered are let go.
    pub(super) fn answered(&mut self, slot: usize) {
        (*self.asked.at(slot), *self.answers.at(slot)) = (None, None);
    }

    /// What another rank found for this rank's queries `rows`: output and log-sum-exp of all own queries, those that
    /// are not among them with nothing attended.
    pub(super) fn spread(&self, rows: &D::Rows, part: &AccMatrix<D>) -> (AccMatrix<D>, AccMatrix<D>) {
        let (queries, heads, columns) = (self.own_queries.rows(), self.shape.q_heads, self.shape.out_width());
        let mut out = self.device.zero_matrix(queries, columns);
        let mut lse: AccMatrix<D> = self.device.matrix(queries, heads);
        self.device.fill(lse.view_mut(), num_traits::Float::neg_infinity());
        let part = part.view();
        self.device.scatter_rows(part.column_range(0..columns), rows, out.view_mut());
        self.device.scatter_rows(part.column_range(columns..columns + heads), rows, lse.view_mut());
        (out, lse)
    }

    /// The keys and values of a slot.
    pub(super) fn key_slot(&mut self, slot: usize) -> ElemRef<'_, D> {
        match (slot, &self.own_keys) {
            (0, Some(own)) => own.view(),
            _ => {
                let (rows, width) = (self.program.slots[slot], self.shape.kv_width());
                self.keys.at(slot).get_or_insert_with(|| self.device.zero_matrix(rows, width)).view()
            }
        }
    }

    /// The keys and values of a slot that holds some.
    ///
    /// # Errors
    /// If it holds none.
    pub(super) fn held(&self, slot: usize) -> Result<ElemRef<'_, D>> {
        let held = self.stored(Content::Keys, slot);
        held.ok_or_else(|| unsound("queries served from a slot that holds no keys").into())
    }

    /// The gradients of a slot, to be put back; zero where nothing was added yet.
    pub(super) fn take_gradients(&mut self, slot: usize) -> AccMatrix<D> {
        let (rows, width) = (self.program.slots[slot], self.shape.kv_width());
        self.gradients.at(slot).take().unwrap_or_else(|| self.device.zero_matrix(rows, width))
    }

    /// Puts back what was taken.
    pub(super) fn put_gradients(&mut self, slot: usize, gradients: AccMatrix<D>) {
        *self.gradients.at(slot) = Some(gradients);
    }

    /// Lets go of a slot.
    pub(super) fn free(&mut self, slot: usize) {
        if slot == 0 {
            self.own_keys = None;
        }
        *self.keys.at(slot) = None;
        if slot != self.program.home {
            *self.gradients.at(slot) = None;
        }
    }
}
