//! What a block does besides attention: norms, projections, MLP, forward and backward. Generic in the device only.

use crate::model::config::Config;
use crate::model::parameters::{Gradients, JoinedIds, LayerIds, LinearIds, ParameterId, Parameters};
use crate::model::projected::{HeadNorms, Normed, Projected, ProjectedGradients, Widths};
use crate::ops::Ops;
use crate::tensor::{Device, ElemMatrix, ElemMut, ElemRef};

/// One block's place in the model.
pub(super) struct Layer<'a, D: Device> {
    pub device: &'a D,
    pub config: &'a Config,
    pub ids: &'a LayerIds,
    pub parameters: &'a Parameters<D>,
}

/// Everything after attention.
#[derive(Clone, Debug)]
pub(super) struct Mixed<D: Device> {
    /// Residual stream after attention.
    middle: ElemMatrix<D>,
    normed: Normed<D>,
    /// Gate and up side by side.
    gate_up: ElemMatrix<D>,
}

impl<D: Ops> Layer<'_, D> {
    fn norm(&self, x: ElemRef<'_, D>, weight: ParameterId) -> Normed<D> {
        let mut normed = Normed { y: self.matrix(x.rows(), x.cols()), reciprocal: self.device.matrix(x.rows(), 1) };
        let (y, reciprocal) = (normed.y.view_mut(), normed.reciprocal.view_mut());
        self.device.rms_norm(x, self.parameters.view(weight), 1, self.config.rms_norm_eps, y, reciprocal);
        normed
    }

    fn matrix(&self, rows: usize, cols: usize) -> ElemMatrix<D> {
        self.device.matrix(rows, cols)
    }

    fn linear_into(&self, x: ElemRef<'_, D>, ids: LinearIds, y: ElemMut<'_, D>) {
        let bias = ids.bias.map(|bias| self.parameters.view(bias));
        self.device.linear(x, self.parameters.view(ids.weight), bias, y);
    }

    fn linear(&self, x: ElemRef<'_, D>, ids: LinearIds) -> ElemMatrix<D> {
        let mut y = self.matrix(x.rows(), self.parameters.view(ids.weight).cols());
        self.linear_into(x, ids, y.view_mut());
        y
    }

    /// Linear layers of one input in one product, side by side.
    fn joined(&self, x: ElemRef<'_, D>, ids: JoinedIds, parts: &[LinearIds]) -> ElemMatrix<D> {
        let weight = self.parameters.stored(ids.weight);
        let mut y = self.matrix(x.rows(), weight.cols());
        if ids.bias.is_some() || parts.iter().all(|part| part.bias.is_none()) {
            self.device.linear(x, weight, ids.bias.map(|bias| self.parameters.stored(bias)), y.view_mut());
            return y;
        }
        let mut first = 0;
        for part in parts {
            let columns = first..first + self.parameters.view(part.weight).cols();
            first = columns.end;
            self.linear_into(x, *part, y.view_mut().column_range(columns));
        }
        y
    }

    /// Adds the weight's gradient, and writes the input's.
    fn linear_backward(
        &self,
        (x, dy): (ElemRef<'_, D>, ElemRef<'_, D>),
        ids: LinearIds,
        dx: ElemMut<'_, D>,
        gradients: &mut Gradients<D>,
    ) {
        self.device.linear_backward_input(dy, self.parameters.view(ids.weight), dx, false);
        self.device.linear_backward_weight(x, dy, gradients.view_mut(ids.weight));
        if let Some(bias) = ids.bias {
            self.device.linear_backward_bias(dy, gradients.view_mut(bias));
        }
    }

    /// The same for layers of one input, whose gradients are side by side too.
    fn joined_backward(
        &self,
        (x, dy): (ElemRef<'_, D>, ElemRef<'_, D>),
        (ids, parts): (JoinedIds, &[LinearIds]),
        dx: ElemMut<'_, D>,
        gradients: &mut Gradients<D>,
    ) {
        self.device.linear_backward_input(dy, self.parameters.stored(ids.weight), dx, false);
        self.device.linear_backward_weight(x, dy, gradients.stored_mut(ids.weight));
        if let Some(bias) = ids.bias {
            return self.device.linear_backward_bias(dy, gradients.stored_mut(bias));
        }
        let mut first = 0;
        for part in parts {
            let columns = first..first + self.parameters.view(part.weight).cols();
            first = columns.end;
            if let Some(bias) = part.bias {
                self.device.linear_backward_bias(dy.column_range(columns), gradients.view_mut(bias));
            }
        }
    }

    fn qkv_parts(&self) -> [LinearIds; 3] {
        [self.ids.query, self.ids.key, self.ids.value]
    }

    /// Queries, keys and values before rotation, from the block's input.
    pub fn project(&self, x: ElemRef<'_, D>) -> Projected<D> {
        let normed = self.norm(x, self.ids.input_norm);
        let qkv = self.joined(normed.y.view(), self.ids.qkv, &self.qkv_parts());
        let widths = Widths { queries: self.config.query_size(), keys: self.config.kv_size() };
        let heads = self.ids.head_norms.map(|(query, key)| {
            let mut heads = HeadNorms {
                qk: self.matrix(x.rows(), widths.queries + widths.keys),
                query: self.device.matrix(x.rows(), self.config.heads),
                key: self.device.matrix(x.rows(), self.config.kv_heads),
            };
            for (columns, weight, reciprocal) in
                [(widths.queries(), query, &mut heads.query), (widths.keys(), key, &mut heads.key)]
            {
                let (from, parts) = (qkv.view().column_range(columns.clone()), reciprocal.cols());
                let (w, eps) = (self.parameters.view(weight), self.config.rms_norm_eps);
                let to = heads.qk.view_mut().column_range(columns);
                self.device.rms_norm(from, w, parts, eps, to, reciprocal.view_mut());
            }
            heads
        });
        Projected { normed, widths, qkv, heads }
    }

    /// Memory for the gradients of what [`Layer::project`] gave.
    pub fn projected_gradients(&self, saved: &Projected<D>) -> ProjectedGradients<D> {
        let (widths, rows) = (saved.widths, saved.qkv.rows());
        let normed = saved.heads.is_some().then(|| [widths.queries, widths.keys].map(|cols| self.matrix(rows, cols)));
        ProjectedGradients { widths, qkv: self.matrix(rows, widths.all()), normed }
    }

    /// Adds to `dx [rows, hidden]` the gradient through [`Layer::project`].
    pub fn project_backward(
        &self,
        x: ElemRef<'_, D>,
        saved: &Projected<D>,
        dqkv: ProjectedGradients<D>,
        dx: ElemMut<'_, D>,
        gradients: &mut Gradients<D>,
    ) {
        let ProjectedGradients { widths, qkv: mut dqkv, normed } = dqkv;
        if let (Some((query, key)), Some(heads), Some([dq, dk])) = (self.ids.head_norms, &saved.heads, &normed) {
            for (columns, weight, reciprocal, dy) in
                [(widths.queries(), query, &heads.query, dq), (widths.keys(), key, &heads.key, dk)]
            {
                let (x, w) = (saved.qkv.view().column_range(columns.clone()), self.parameters.view(weight));
                let (dx, dw) = (dqkv.view_mut().column_range(columns), gradients.view_mut(weight));
                self.device.rms_norm_backward(x, w, reciprocal.view(), dy.view(), dx, false, dw);
            }
        }
        drop(normed);
        let y = &saved.normed.y;
        let mut dy = self.matrix(y.rows(), y.cols());
        let parts = self.qkv_parts();
        self.joined_backward((y.view(), dqkv.view()), (self.ids.qkv, &parts), dy.view_mut(), gradients);
        self.norm_backward(x, &saved.normed, self.ids.input_norm, dy.view(), dx, gradients);
    }

    fn norm_backward(
        &self,
        x: ElemRef<'_, D>,
        saved: &Normed<D>,
        weight: ParameterId,
        dy: ElemRef<'_, D>,
        dx: ElemMut<'_, D>,
        gradients: &mut Gradients<D>,
    ) {
        let (w, dweight) = (self.parameters.view(weight), gradients.view_mut(weight));
        self.device.rms_norm_backward(x, w, saved.reciprocal.view(), dy, dx, true, dweight);
    }

    /// Gate and up, then their product.
    fn gated(&self, gate_up: &ElemMatrix<D>) -> ElemMatrix<D> {
        let half = gate_up.cols() / 2;
        let mut inner = self.matrix(gate_up.rows(), half);
        let [gate, up] = [0..half, half..2 * half].map(|columns| gate_up.view().column_range(columns));
        self.device.swiglu(gate, up, inner.view_mut());
        inner
    }

    /// The block's output, from its input and the attention output.
    pub fn mix(&self, x: ElemRef<'_, D>, attended: ElemRef<'_, D>) -> (ElemMatrix<D>, Mixed<D>) {
        let mut middle = self.linear(attended, self.ids.output);
        self.device.add(middle.view_mut(), x);
        let normed = self.norm(middle.view(), self.ids.mlp_norm);
        let gate_up = self.joined(normed.y.view(), self.ids.gate_up, &[self.ids.gate, self.ids.up]);
        let inner = self.gated(&gate_up);
        let mut y = self.linear(inner.view(), self.ids.down);
        self.device.add(y.view_mut(), middle.view());
        (y, Mixed { middle, normed, gate_up })
    }

    /// From the gradient of the output: that of the attention output; `dy` becomes that of the input, without what
    /// comes through attention.
    pub fn mix_backward(
        &self,
        attended: ElemRef<'_, D>,
        saved: &Mixed<D>,
        dy: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> ElemMatrix<D> {
        let (device, half) = (self.device, saved.gate_up.cols() / 2);
        let inner = self.gated(&saved.gate_up);
        let mut dinner = self.matrix(inner.rows(), half);
        self.linear_backward((inner.view(), dy.view()), self.ids.down, dinner.view_mut(), gradients);
        drop(inner);
        let mut dgate_up = self.matrix(dinner.rows(), 2 * half);
        let [gate, up] = [0..half, half..2 * half].map(|columns| saved.gate_up.view().column_range(columns));
        device.swiglu_backward(gate, up, dinner.view(), dgate_up.view_mut());
        drop(dinner);
        let y = &saved.normed.y;
        let mut dnormed = self.matrix(y.rows(), y.cols());
        let parts = [self.ids.gate, self.ids.up];
        let operands = (y.view(), dgate_up.view());
        self.joined_backward(operands, (self.ids.gate_up, &parts), dnormed.view_mut(), gradients);
        let middle = saved.middle.view();
        self.norm_backward(middle, &saved.normed, self.ids.mlp_norm, dnormed.view(), dy.view_mut(), gradients);
        let mut dattended = self.matrix(attended.rows(), attended.cols());
        self.linear_backward((attended, dy.view()), self.ids.output, dattended.view_mut(), gradients);
        dattended
    }
}
