//! Moving and adding rows, and conversion between storage and accumulation type.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::order::Rows;
use crate::tensor::{
    AccMatrix, AccMut, AccRef, Device, ElemMatrix, ElemMut, ElemRef, Element, Float, MatrixMut, MatrixRef, Real,
};

op! {
    /// Row movements. Rows are those of the larger matrix; the smaller one has a row for each of them, in their order,
    /// and both have the same columns.
    ///
    /// ```
    /// use context_parallel::ops::rows::MoveRows;
    /// use context_parallel::order::Rows;
    /// use context_parallel::tensor::{Cpu, Device, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let x = Matrix::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0], 5, 1);
    /// let mut part = cpu.matrix(3, 1);
    /// cpu.gather_rows(x.view(), &cpu.rows(&Rows::from_iter([4, 0, 1])), part.view_mut());
    /// assert_eq!(part[..], [5.0, 1.0, 2.0]);
    ///
    /// let mut sum = cpu.zero_matrix::<f32>(2, 1);
    /// cpu.scatter_add_rows(part.view(), &cpu.rows(&Rows::from_iter([1, 0, 1])), sum.view_mut());
    /// assert_eq!(sum[..], [1.0, 7.0]);
    /// ```
    pub trait MoveRows: Device {
        prepared {
            /// Rows as the device takes them.
            type Rows;

            /// Prepares rows, once for all ops that move them.
            fn rows(&self, rows: &Rows) -> _;
        }

        /// Writes row `rows[i]` of `source` to row `i` of `target`.
        fn gather_rows<T: Element>(
            &self,
            source: MatrixRef<'_, T, Self::Storage>,
            rows: &Self::Rows,
            target: MatrixMut<'_, T, Self::Storage>,
        );

        /// Writes row `i` of `source` to row `rows[i]` of `target`.
        fn scatter_rows<T: Element>(
            &self,
            source: MatrixRef<'_, T, Self::Storage>,
            rows: &Self::Rows,
            target: MatrixMut<'_, T, Self::Storage>,
        );

        /// Adds row `i` of `source` to row `rows[i]` of `target`.
        fn scatter_add_rows<T: Real>(
            &self,
            source: MatrixRef<'_, T, Self::Storage>,
            rows: &Self::Rows,
            target: MatrixMut<'_, T, Self::Storage>,
        );

        /// Writes `source` to `target`, of the same shape.
        fn copy<T: Element>(&self, source: MatrixRef<'_, T, Self::Storage>, target: MatrixMut<'_, T, Self::Storage>);

        /// Writes `value` everywhere.
        fn fill<T: Element>(&self, x: MatrixMut<'_, T, Self::Storage>, value: T);

        /// `x += y`, rounded once per element.
        fn add<T: Float>(&self, x: MatrixMut<'_, T, Self::Storage>, y: MatrixRef<'_, T, Self::Storage>);

        /// Widens.
        fn to_acc(&self, x: ElemRef<'_, Self>, y: AccMut<'_, Self>);

        /// Rounds.
        fn to_elem(&self, x: AccRef<'_, Self>, y: ElemMut<'_, Self>);

        provided {
            /// Zeroes.
            fn clear<T: Element>(&self, x: MatrixMut<'_, T, Self::Storage>) {
                self.fill(x, T::zeroed());
            }

            /// A widened matrix.
            fn to_acc_matrix(&self, x: ElemRef<'_, Self>) -> AccMatrix<Self> {
                let mut y = self.matrix(x.rows(), x.cols());
                self.to_acc(x, y.view_mut());
                y
            }

            /// A rounded matrix.
            fn to_elem_matrix(&self, x: AccRef<'_, Self>) -> ElemMatrix<Self> {
                let mut y = self.matrix(x.rows(), x.cols());
                self.to_elem(x, y.view_mut());
                y
            }
        }
    }
}
