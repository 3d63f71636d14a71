//! In what numbers matrices travel between ranks.

use crate::comm::{Parcel, Receive, open};
use crate::error::Result;
use crate::ops::rows::MoveRows;
use crate::plan::Wire;
use crate::tensor::{Device, Element, Matrix, MatrixRef};

/// How a matrix of `T` becomes a message and comes out of one.
pub(super) trait Encoding<T: Element, D: Device>: Copy {
    /// The message.
    fn encode(self, device: &D, matrix: Matrix<T, D::Storage>) -> Parcel<D::Storage>;

    /// What to expect for `len` elements.
    fn expect(self, from: usize, len: usize) -> Receive;

    /// The matrix `[rows, cols]`.
    ///
    /// # Errors
    /// If the message holds other elements.
    fn decode(
        self,
        device: &D,
        parcel: Parcel<D::Storage>,
        from: (usize, &'static str),
        shape: (usize, usize),
    ) -> Result<Matrix<T, D::Storage>>;
}

/// As they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct AsIs;

impl<T: Element, D: Device> Encoding<T, D> for AsIs {
    fn encode(self, _device: &D, matrix: Matrix<T, D::Storage>) -> Parcel<D::Storage> {
        matrix.into_buffer().into()
    }

    fn expect(self, from: usize, len: usize) -> Receive {
        Receive::of::<T>(from, len)
    }

    fn decode(
        self,
        _device: &D,
        parcel: Parcel<D::Storage>,
        (from, operation): (usize, &'static str),
        (rows, cols): (usize, usize),
    ) -> Result<Matrix<T, D::Storage>> {
        Ok(Matrix::new(open(parcel, from, operation)?, rows, cols))
    }
}

/// Gradients, rounded to the storage type if that is asked for.
impl<D: MoveRows> Encoding<D::Acc, D> for Wire {
    fn encode(self, device: &D, matrix: Matrix<D::Acc, D::Storage>) -> Parcel<D::Storage> {
        match self {
            Wire::Accumulated => AsIs.encode(device, matrix),
            Wire::Stored => device.to_elem_matrix(matrix.view()).into_buffer().into(),
        }
    }

    fn expect(self, from: usize, len: usize) -> Receive {
        match self {
            Wire::Accumulated => Receive::of::<D::Acc>(from, len),
            Wire::Stored => Receive::of::<D::Elem>(from, len),
        }
    }

    fn decode(
        self,
        device: &D,
        parcel: Parcel<D::Storage>,
        from: (usize, &'static str),
        (rows, cols): (usize, usize),
    ) -> Result<Matrix<D::Acc, D::Storage>> {
        match self {
            Wire::Accumulated => AsIs.decode(device, parcel, from, (rows, cols)),
            Wire::Stored => {
                let rounded = open::<D::Elem, _>(parcel, from.0, from.1)?;
                Ok(device.to_acc_matrix(MatrixRef::new(&rounded, 0, rows, cols, cols)))
            }
        }
    }
}
