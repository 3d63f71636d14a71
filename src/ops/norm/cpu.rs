//! RMSNorm on the processor.

use num_traits::Float as _;

use crate::ops::dot;
use crate::ops::norm::RmsNorm;
use crate::tensor::{Cpu, Device, Float, Matrix};

impl<T: Float> RmsNorm for Cpu<T> {
    fn rms_norm(&self, x: &Matrix<T>, weight: &Matrix<T>, eps: f64) -> (Matrix<T>, Matrix<T::Acc>) {
        let (rows, n) = (x.rows(), x.cols());
        let mut y = self.matrix(rows, n);
        let mut reciprocal = self.matrix(rows, 1);
        let (eps, count) = (T::Acc::from_f64(eps), T::Acc::from_f64(n as f64));
        for row in 0..rows {
            let x = x.row(row);
            let r = (dot(x, x) / count + eps).sqrt().recip();
            reciprocal[row] = r;
            for ((y, &x), &w) in y.row_mut(row).iter_mut().zip(x).zip(weight.iter()) {
                *y = T::from_acc(x.to_acc() * r * w.to_acc());
            }
        }
        (y, reciprocal)
    }

    fn rms_norm_backward(
        &self,
        x: &Matrix<T>,
        weight: &Matrix<T>,
        reciprocal: &Matrix<T::Acc>,
        dy: &Matrix<T>,
        dx: &mut Matrix<T>,
        accumulate: bool,
        dweight: &mut Matrix<T::Acc>,
    ) {
        let n = x.cols();
        let zero = T::Acc::from_f64(0.0);
        let mut g = vec![zero; n];
        for row in 0..x.rows() {
            let (x, dy, r) = (x.row(row), dy.row(row), reciprocal[row]);
            let mut sum = zero;
            for i in 0..n {
                let (xi, dyi) = (x[i].to_acc(), dy[i].to_acc());
                dweight[i] += dyi * xi * r;
                g[i] = dyi * weight[i].to_acc();
                sum += g[i] * xi;
            }
            let factor = sum * r * r * r / T::Acc::from_f64(n as f64);
            for (i, dx) in dx.row_mut(row).iter_mut().enumerate() {
                let value = g[i] * r - x[i].to_acc() * factor;
                *dx = T::from_acc(if accumulate { dx.to_acc() + value } else { value });
            }
        }
    }
}
