//! Rotation on the processor.

use crate::ops::rotary::Rotary;
use crate::tensor::{Cpu, Float, Matrix};

impl<T: Float> Rotary for Cpu<T> {
    fn rotate(
        &self,
        x: &mut Matrix<T>,
        heads: usize,
        cos: &Matrix<T::Acc>,
        sin: &Matrix<T::Acc>,
        interleaved: bool,
        inverse: bool,
    ) {
        let (dim, pairs) = (x.cols() / heads.max(1), cos.cols());
        for row in 0..x.rows() {
            let (cos, sin) = (cos.row(row), sin.row(row));
            for head in x.row_mut(row).chunks_exact_mut(dim) {
                for i in 0..pairs {
                    let (first, second) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
                    let (a, b) = (head[first].to_acc(), head[second].to_acc());
                    let s = if inverse { -sin[i] } else { sin[i] };
                    head[first] = T::from_acc(a * cos[i] - b * s);
                    head[second] = T::from_acc(b * cos[i] + a * s);
                }
            }
        }
    }
}
