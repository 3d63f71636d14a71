//! Ops of the device that computes nothing: results have their shapes, and that is all.

use std::ops::Range;

use crate::ops::attention::{Attention, AttentionShape};
use crate::ops::embedding::Embedding;
use crate::ops::loss::CrossEntropy;
use crate::ops::matmul::Matmul;
use crate::ops::norm::RmsNorm;
use crate::ops::optimizer::{AdamwStep, Optimizer};
use crate::ops::rotary::Rotary;
use crate::ops::rows::Rows;
use crate::ops::swiglu::Swiglu;
use crate::ops::unfused::{Block, Unfused, cells};
use crate::plan::Piece;
use crate::tensor::{
    AccBuffer, AccMatrix, Buffer, Device, DryRun, ElemBuffer, ElemMatrix, Element, Float, Matrix, Real,
};

type Rehearsed<E, T> = Matrix<E, <DryRun<T> as Device>::Storage>;

impl<T: Float> Attention for DryRun<T> {
    fn attention(
        &self,
        _shape: &AttentionShape,
        _q: &ElemMatrix<Self>,
        _kv: &ElemMatrix<Self>,
        _pieces: &[Piece],
        _out: &mut AccMatrix<Self>,
        _lse: &mut AccMatrix<Self>,
    ) {
    }

    fn attention_merge(
        &self,
        _shape: &AttentionShape,
        _out: &mut AccMatrix<Self>,
        _lse: &mut AccMatrix<Self>,
        _part_out: &AccMatrix<Self>,
        _part_lse: &AccMatrix<Self>,
    ) {
    }

    fn attention_delta(
        &self,
        shape: &AttentionShape,
        out: &AccMatrix<Self>,
        _dout: &ElemMatrix<Self>,
    ) -> AccMatrix<Self> {
        self.matrix(out.rows(), shape.q_heads)
    }

    fn attention_backward(
        &self,
        _shape: &AttentionShape,
        _q: &ElemMatrix<Self>,
        _kv: &ElemMatrix<Self>,
        _pieces: &[Piece],
        _dout: &ElemMatrix<Self>,
        _lse: &AccMatrix<Self>,
        _delta: &AccMatrix<Self>,
        _dq: &mut AccMatrix<Self>,
        _dkv: &mut AccMatrix<Self>,
    ) {
    }
}

impl<T: Float> Unfused for DryRun<T> {
    fn unfused(
        &self,
        shape: &AttentionShape,
        _q: &ElemMatrix<Self>,
        _kv: &ElemMatrix<Self>,
        blocks: &[Block],
        _pieces: &[Piece],
        _out: &mut AccMatrix<Self>,
    ) -> AccBuffer<Self> {
        self.empty(cells(shape, blocks))
    }

    fn unfused_backward(
        &self,
        _shape: &AttentionShape,
        _q: &ElemMatrix<Self>,
        _kv: &ElemMatrix<Self>,
        _blocks: &[Block],
        _probabilities: &AccBuffer<Self>,
        _dout: &ElemMatrix<Self>,
        _dq: &mut AccMatrix<Self>,
        _dkv: &mut AccMatrix<Self>,
    ) {
    }
}

impl<T: Float> Rows for DryRun<T> {
    fn gather_block<E: Element>(
        &self,
        _source: &Rehearsed<E, T>,
        _rows: &[usize],
        _columns: Range<usize>,
        _target: &mut Rehearsed<E, T>,
        _column: usize,
    ) {
    }

    fn scatter_block<E: Element>(
        &self,
        _source: &Rehearsed<E, T>,
        _columns: Range<usize>,
        _rows: &[usize],
        _target: &mut Rehearsed<E, T>,
        _column: usize,
    ) {
    }

    fn scatter_add_block<E: Real>(
        &self,
        _source: &Rehearsed<E, T>,
        _columns: Range<usize>,
        _rows: &[usize],
        _target: &mut Rehearsed<E, T>,
        _column: usize,
    ) {
    }

    fn add(&self, _x: &mut ElemMatrix<Self>, _y: &ElemMatrix<Self>) {}

    fn to_acc(&self, x: &ElemBuffer<Self>) -> AccBuffer<Self> {
        self.empty(x.len())
    }

    fn to_elem(&self, x: &AccBuffer<Self>) -> ElemBuffer<Self> {
        self.empty(x.len())
    }
}

impl<T: Float> Matmul for DryRun<T> {
    fn linear(&self, x: &ElemMatrix<Self>, w: &ElemMatrix<Self>, _bias: Option<&ElemBuffer<Self>>) -> ElemMatrix<Self> {
        self.matrix(x.rows(), w.cols())
    }

    fn linear_backward_input(
        &self,
        _dy: &ElemMatrix<Self>,
        _w: &ElemMatrix<Self>,
        _dx: &mut ElemMatrix<Self>,
        _accumulate: bool,
    ) {
    }

    fn linear_backward_weight(
        &self,
        _x: &ElemMatrix<Self>,
        _dy: &ElemMatrix<Self>,
        _dw: &mut AccMatrix<Self>,
        _db: Option<&mut AccMatrix<Self>>,
    ) {
    }

    fn transpose(&self, x: &ElemMatrix<Self>) -> ElemMatrix<Self> {
        self.matrix(x.cols(), x.rows())
    }
}

impl<T: Float> RmsNorm for DryRun<T> {
    fn rms_norm(
        &self,
        x: &ElemMatrix<Self>,
        _weight: &ElemMatrix<Self>,
        _eps: f64,
    ) -> (ElemMatrix<Self>, AccMatrix<Self>) {
        (self.matrix(x.rows(), x.cols()), self.matrix(x.rows(), 1))
    }

    fn rms_norm_backward(
        &self,
        _x: &ElemMatrix<Self>,
        _weight: &ElemMatrix<Self>,
        _reciprocal: &AccMatrix<Self>,
        _dy: &ElemMatrix<Self>,
        _dx: &mut ElemMatrix<Self>,
        _accumulate: bool,
        _dweight: &mut AccMatrix<Self>,
    ) {
    }
}

impl<T: Float> Rotary for DryRun<T> {
    fn rotate(
        &self,
        _x: &mut ElemMatrix<Self>,
        _heads: usize,
        _cos: &AccMatrix<Self>,
        _sin: &AccMatrix<Self>,
        _interleaved: bool,
        _inverse: bool,
    ) {
    }
}

impl<T: Float> Swiglu for DryRun<T> {
    fn swiglu(&self, gate: &ElemMatrix<Self>, _up: &ElemMatrix<Self>) -> ElemMatrix<Self> {
        self.matrix(gate.rows(), gate.cols())
    }

    fn swiglu_backward(
        &self,
        gate: &ElemMatrix<Self>,
        up: &ElemMatrix<Self>,
        _dy: &ElemMatrix<Self>,
    ) -> (ElemMatrix<Self>, ElemMatrix<Self>) {
        (self.matrix(gate.rows(), gate.cols()), self.matrix(up.rows(), up.cols()))
    }
}

impl<T: Float> Embedding for DryRun<T> {
    fn embed(&self, table: &ElemMatrix<Self>, tokens: &Buffer<i64, <Self as Device>::Storage>) -> ElemMatrix<Self> {
        self.matrix(tokens.len(), table.cols())
    }

    fn embed_backward(
        &self,
        _tokens: &Buffer<i64, <Self as Device>::Storage>,
        _dy: &ElemMatrix<Self>,
        _skip: Option<i64>,
        _dtable: &mut AccMatrix<Self>,
    ) {
    }
}

impl<T: Float> CrossEntropy for DryRun<T> {
    fn cross_entropy(
        &self,
        _logits: &mut ElemMatrix<Self>,
        _labels: &Buffer<i64, <Self as Device>::Storage>,
        _weights: &Buffer<f32, <Self as Device>::Storage>,
        _scale: Option<f64>,
    ) -> f64 {
        0.0
    }
}

impl<T: Float> Optimizer for DryRun<T> {
    fn adamw(
        &self,
        _step: &AdamwStep,
        _gradient: &AccMatrix<Self>,
        _weights: &mut AccMatrix<Self>,
        _mean: &mut AccMatrix<Self>,
        _square: &mut AccMatrix<Self>,
    ) {
    }

    fn sum_of_squares(&self, _x: &AccBuffer<Self>) -> f64 {
        0.0
    }

    fn scale(&self, _x: &mut AccBuffer<Self>, _factor: f64) {}

    fn clear(&self, _x: &mut AccBuffer<Self>) {}
}
