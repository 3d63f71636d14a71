//! What a block does besides attention: norms, projections, MLP, forward and backward. Generic in the device only.

use crate::model::config::Config;
use crate::model::parameters::{Gradients, LayerIds, LinearIds, ParameterId, Parameters};
use crate::ops::Ops;
use crate::tensor::{AccMatrix, Device, ElemMatrix, Matrix};

/// One block's place in the model.
pub(super) struct Layer<'a, D: Device> {
    pub device: &'a D,
    pub config: &'a Config,
    pub ids: &'a LayerIds,
    pub parameters: &'a Parameters<D>,
}

/// Input of a norm and what its backward needs.
#[derive(Clone, Debug)]
pub(super) struct Normed<D: Device> {
    pub y: ElemMatrix<D>,
    reciprocal: AccMatrix<D>,
}

/// Queries or keys before their norm, heads as rows.
#[derive(Clone, Debug)]
pub(super) struct HeadNormed<D: Device> {
    x: ElemMatrix<D>,
    reciprocal: AccMatrix<D>,
}

/// Everything between the block's input and attention.
#[derive(Clone, Debug)]
pub(super) struct Projected<D: Device> {
    pub normed: Normed<D>,
    pub query_norm: Option<HeadNormed<D>>,
    pub key_norm: Option<HeadNormed<D>>,
}

/// Everything after attention.
#[derive(Clone, Debug)]
pub(super) struct Mixed<D: Device> {
    /// Residual stream after attention.
    middle: ElemMatrix<D>,
    normed: Normed<D>,
    gate: ElemMatrix<D>,
    up: ElemMatrix<D>,
}

impl<D: Ops> Layer<'_, D> {
    fn norm(&self, x: &ElemMatrix<D>, weight: ParameterId) -> Normed<D> {
        let (y, reciprocal) = self.device.rms_norm(x, &self.parameters[weight], self.config.rms_norm_eps);
        Normed { y, reciprocal }
    }

    fn linear(&self, x: &ElemMatrix<D>, ids: LinearIds) -> ElemMatrix<D> {
        let bias = ids.bias.map(|bias| self.parameters[bias].buffer());
        self.device.linear(x, &self.parameters[ids.weight], bias)
    }

    /// Adds the weight's gradient, and adds to or writes the input's.
    fn linear_backward(
        &self,
        (x, dy): (&ElemMatrix<D>, &ElemMatrix<D>),
        ids: LinearIds,
        (dx, accumulate): (&mut ElemMatrix<D>, bool),
        gradients: &mut Gradients<D>,
    ) {
        self.device.linear_backward_input(dy, &self.parameters[ids.weight], dx, accumulate);
        match ids.bias {
            None => self.device.linear_backward_weight(x, dy, &mut gradients[ids.weight], None),
            Some(bias) => {
                let (dw, db) = gradients.pair_mut(ids.weight, bias);
                self.device.linear_backward_weight(x, dy, dw, Some(db));
            }
        }
    }

    /// Queries, keys and values before rotation, from the block's input.
    pub fn project(&self, x: &ElemMatrix<D>) -> ([ElemMatrix<D>; 3], Projected<D>) {
        let normed = self.norm(x, self.ids.input_norm);
        let q = self.linear(&normed.y, self.ids.query);
        let k = self.linear(&normed.y, self.ids.key);
        let v = self.linear(&normed.y, self.ids.value);
        let Some((query_weight, key_weight)) = self.ids.head_norms else {
            return ([q, k, v], Projected { normed, query_norm: None, key_norm: None });
        };
        let (q, query_norm) = self.head_norm(q, self.config.heads, query_weight);
        let (k, key_norm) = self.head_norm(k, self.config.kv_heads, key_weight);
        ([q, k, v], Projected { normed, query_norm: Some(query_norm), key_norm: Some(key_norm) })
    }

    fn head_norm(&self, x: ElemMatrix<D>, heads: usize, weight: ParameterId) -> (ElemMatrix<D>, HeadNormed<D>) {
        let (rows, cols) = (x.rows(), x.cols());
        let x = x.split_cols(heads);
        let Normed { y, reciprocal } = self.norm(&x, weight);
        (Matrix::new(y.into_buffer(), rows, cols), HeadNormed { x, reciprocal })
    }

    fn head_norm_backward(
        &self,
        dy: ElemMatrix<D>,
        saved: &HeadNormed<D>,
        heads: usize,
        weight: ParameterId,
        gradients: &mut Gradients<D>,
    ) -> ElemMatrix<D> {
        let (rows, cols) = (dy.rows(), dy.cols());
        let dy = dy.split_cols(heads);
        let mut dx = self.device.matrix(dy.rows(), dy.cols());
        let dweight = &mut gradients[weight];
        let w = &self.parameters[weight];
        self.device.rms_norm_backward(&saved.x, w, &saved.reciprocal, &dy, &mut dx, false, dweight);
        Matrix::new(dx.into_buffer(), rows, cols)
    }

    /// Adds to `dx [rows, hidden]` the gradient through [`Layer::project`].
    pub fn project_backward(
        &self,
        x: &ElemMatrix<D>,
        saved: &Projected<D>,
        [mut dq, mut dk, dv]: [ElemMatrix<D>; 3],
        dx: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) {
        if let (Some((query_weight, key_weight)), Some(query), Some(key)) =
            (self.ids.head_norms, &saved.query_norm, &saved.key_norm)
        {
            dq = self.head_norm_backward(dq, query, self.config.heads, query_weight, gradients);
            dk = self.head_norm_backward(dk, key, self.config.kv_heads, key_weight, gradients);
        }
        let y = &saved.normed.y;
        let mut dy = self.device.matrix(y.rows(), y.cols());
        self.linear_backward((y, &dq), self.ids.query, (&mut dy, false), gradients);
        self.linear_backward((y, &dk), self.ids.key, (&mut dy, true), gradients);
        self.linear_backward((y, &dv), self.ids.value, (&mut dy, true), gradients);
        self.norm_backward(x, &saved.normed, self.ids.input_norm, &dy, dx, gradients);
    }

    fn norm_backward(
        &self,
        x: &ElemMatrix<D>,
        saved: &Normed<D>,
        weight: ParameterId,
        dy: &ElemMatrix<D>,
        dx: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) {
        let (w, dweight) = (&self.parameters[weight], &mut gradients[weight]);
        self.device.rms_norm_backward(x, w, &saved.reciprocal, dy, dx, true, dweight);
    }

    /// The block's output, from its input and the attention output.
    pub fn mix(&self, x: &ElemMatrix<D>, attended: &ElemMatrix<D>) -> (ElemMatrix<D>, Mixed<D>) {
        let mut middle = self.linear(attended, self.ids.output);
        self.device.add(&mut middle, x);
        let normed = self.norm(&middle, self.ids.mlp_norm);
        let gate = self.linear(&normed.y, self.ids.gate);
        let up = self.linear(&normed.y, self.ids.up);
        let inner = self.device.swiglu(&gate, &up);
        let mut y = self.linear(&inner, self.ids.down);
        self.device.add(&mut y, &middle);
        (y, Mixed { middle, normed, gate, up })
    }

    /// From the gradient of the output: that of the attention output; `dy` becomes that of the input, without what
    /// comes through attention.
    pub fn mix_backward(
        &self,
        attended: &ElemMatrix<D>,
        saved: &Mixed<D>,
        dy: &mut ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> ElemMatrix<D> {
        let device = self.device;
        let inner = device.swiglu(&saved.gate, &saved.up);
        let mut dinner = device.matrix(inner.rows(), inner.cols());
        self.linear_backward((&inner, dy), self.ids.down, (&mut dinner, false), gradients);
        drop(inner);
        let (dgate, dup) = device.swiglu_backward(&saved.gate, &saved.up, &dinner);
        drop(dinner);
        let y = &saved.normed.y;
        let mut dnormed = device.matrix(y.rows(), y.cols());
        self.linear_backward((y, &dgate), self.ids.gate, (&mut dnormed, false), gradients);
        self.linear_backward((y, &dup), self.ids.up, (&mut dnormed, true), gradients);
        self.norm_backward(&saved.middle, &saved.normed, self.ids.mlp_norm, &dnormed, dy, gradients);
        let mut dattended = device.matrix(attended.rows(), attended.cols());
        self.linear_backward((attended, dy), self.ids.output, (&mut dattended, false), gradients);
        dattended
    }
}
