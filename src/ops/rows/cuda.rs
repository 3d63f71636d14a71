//! Row movements on GPUs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::MoveRows;
use crate::order::Rows;
use crate::tensor::cuda::{
    Argument, Arguments, Cuda, CudaFloat, CudaMemory, Dims, Geometry, Kernel, Place, RawView, Suffix, suffix_of,
};
use crate::tensor::{AccMut, AccRef, ElemMut, ElemRef, Element, Float, MatrixMut, MatrixRef, Real};

/// Rows as kernels take them.
#[derive(Debug)]
pub struct CudaRows {
    count: usize,
    end: usize,
    /// First row and step, where one run is all.
    affine: Option<(usize, usize)>,
    /// Else every row, as `u32`.
    list: Option<CudaMemory>,
    /// Where a row is there more than once.
    repeated: Option<Repeated>,
}

/// Different rows, and the indices at which each is listed.
#[derive(Debug)]
struct Repeated {
    targets: CudaMemory,
    count: usize,
    /// Where the indices of each begin in `order`, and the end.
    starts: CudaMemory,
    order: CudaMemory,
}

/// `RowList` of `kernels/rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawRows {
    rows: u64,
    first: i64,
    step: i64,
    count: i64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawRows {}

impl CudaRows {
    fn new(place: &Arc<Place>, rows: &Rows) -> Self {
        let (count, end) = (rows.len(), rows.end());
        let affine = match rows.runs() {
            [] => Some((0, 1)),
            [run] => Some((run.start, run.step)),
            _ => None,
        };
        let list = affine.is_none().then(|| place.list(&rows.iter().map(row_number).collect::<Vec<_>>()));
        let repeated = affine.is_none().then(|| Repeated::new(place, rows)).flatten();
        CudaRows { count, end, affine, list, repeated }
    }

    fn raw(&self, place: &Arc<Place>) -> RawRows {
        let (first, step) = self.affine.unwrap_or((0, 1));
        let rows = self.list.as_ref().map_or(0, |list| list.reads(place));
        RawRows { rows, first: first as i64, step: step as i64, count: self.count as i64 }
    }

    /// Checks a list against the matrices that it is for.
    fn expect(&self, larger: (usize, usize), smaller: (usize, usize)) {
        assert_eq!(smaller, (self.count, larger.1), "a row per row of the list");
        assert!(self.end <= larger.0, "row {} of {}", self.end - 1, larger.0);
    }
}

impl Repeated {
    fn new(place: &Arc<Place>, rows: &Rows) -> Option<Self> {
        let mut by_row: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        rows.iter().enumerate().for_each(|(index, row)| by_row.entry(row).or_default().push(row_number(index)));
        if by_row.len() == rows.len() {
            return None;
        }
        let targets: Vec<u32> = by_row.keys().map(|&row| row_number(row)).collect();
        let lengths = by_row.values().map(Vec::len);
        let starts: Vec<u32> = std::iter::once(0)
            .chain(lengths.scan(0, |end, len| {
                *end += len;
                Some(row_number(*end))
            }))
            .collect();
        let order: Vec<u32> = by_row.into_values().flatten().collect();
        Some(Repeated {
            count: targets.len(),
            targets: place.list(&targets),
            starts: place.list(&starts),
            order: place.list(&order),
        })
    }
}

/// A row as kernels count them.
///
/// # Panics
/// If there are more than 2^32.
fn row_number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or_else(|_| panic!("row {row} is more than a GPU counts: split the buffer"))
}

/// A kernel that is compiled for all types at once.
fn launch(place: &Place, kernel: Kernel, suffix: Suffix, elements: usize, arguments: impl Arguments) {
    arguments.launch(place, kernel.variant(suffix, Dims::Any), Geometry::elementwise(elements));
}

impl<T: CudaFloat> Cuda<T> {
    /// What is read and what is written, of one shape; nothing if they are empty.
    fn alike<A: Element, B: Element>(
        &self,
        source: MatrixRef<'_, A, CudaMemory>,
        target: MatrixMut<'_, B, CudaMemory>,
    ) -> Option<(RawView, RawView)> {
        assert_eq!(source.size(), target.size(), "shapes of source and target");
        (!source.is_empty()).then(|| (RawView::of(self.place(), source), RawView::of_mut(self.place(), target)))
    }

    /// [`MoveRows::gather_rows`] or [`MoveRows::scatter_rows`], which take the same.
    fn move_rows<E: Element>(
        &self,
        kernel: Kernel,
        source: MatrixRef<'_, E, CudaMemory>,
        rows: &CudaRows,
        target: MatrixMut<'_, E, CudaMemory>,
    ) {
        let elements = rows.count * source.cols();
        if elements > 0 {
            let place = self.place();
            let arguments = (RawView::of(place, source), rows.raw(place), RawView::of_mut(place, target));
            launch(place, kernel, Suffix::of_size::<E>(), elements, arguments);
        }
    }
}

impl<T: CudaFloat> MoveRows for Cuda<T> {
    type Rows = Arc<CudaRows>;

    fn rows(&self, rows: &Rows) -> Arc<CudaRows> {
        Arc::new(CudaRows::new(self.place(), rows))
    }

    fn gather_rows<E: Element>(
        &self,
        source: MatrixRef<'_, E, CudaMemory>,
        rows: &Arc<CudaRows>,
        target: MatrixMut<'_, E, CudaMemory>,
    ) {
        rows.expect(source.size(), target.size());
        self.move_rows(Kernel::GatherRows, source, rows, target);
    }

    fn scatter_rows<E: Element>(
        &self,
        source: MatrixRef<'_, E, CudaMemory>,
        rows: &Arc<CudaRows>,
        target: MatrixMut<'_, E, CudaMemory>,
    ) {
        rows.expect(target.size(), source.size());
        self.move_rows(Kernel::ScatterRows, source, rows, target);
    }

    fn scatter_add_rows<E: Real>(
        &self,
        source: MatrixRef<'_, E, CudaMemory>,
        rows: &Arc<CudaRows>,
        target: MatrixMut<'_, E, CudaMemory>,
    ) {
        rows.expect(target.size(), source.size());
        if source.is_empty() {
            return;
        }
        let place = self.place();
        let (targets, starts, order) = match &rows.repeated {
            None => (rows.raw(place), 0, 0),
            Some(Repeated { targets, count, starts, order }) => {
                let raw = RawRows { rows: targets.reads(place), first: 0, step: 1, count: *count as i64 };
                (raw, starts.reads(place), order.reads(place))
            }
        };
        let source = RawView::of(place, source);
        let target = RawView::of_mut(place, target);
        let elements = (targets.count * target.cols) as usize;
        let arguments = (source, targets, starts, order, target);
        launch(place, Kernel::ScatterAddRows, suffix_of::<E>(), elements, arguments);
    }

    fn copy<E: Element>(&self, source: MatrixRef<'_, E, CudaMemory>, target: MatrixMut<'_, E, CudaMemory>) {
        if let Some((source, target)) = self.alike(source, target) {
            launch(self.place(), Kernel::Copy, Suffix::of_size::<E>(), target.len(), (source, target));
        }
    }

    fn fill<E: Element>(&self, x: MatrixMut<'_, E, CudaMemory>, value: E) {
        if x.is_empty() {
            return;
        }
        let mut bits = [0u8; 8];
        bits[..size_of::<E>()].copy_from_slice(bytemuck::bytes_of(&value));
        let place = self.place();
        let x = RawView::of_mut(place, x);
        launch(place, Kernel::Fill, Suffix::of_size::<E>(), x.len(), (x, u64::from_le_bytes(bits)));
    }

    fn add<E: Float>(&self, x: MatrixMut<'_, E, CudaMemory>, y: MatrixRef<'_, E, CudaMemory>) {
        if let Some((y, x)) = self.alike(y, x) {
            launch(self.place(), Kernel::Add, suffix_of::<E>(), x.len(), (x, y));
        }
    }

    fn to_acc(&self, x: ElemRef<'_, Self>, y: AccMut<'_, Self>) {
        if let Some((x, y)) = self.alike(x, y) {
            launch(self.place(), Kernel::Widen, suffix_of::<T>(), x.len(), (x, y));
        }
    }

    fn to_elem(&self, x: AccRef<'_, Self>, y: ElemMut<'_, Self>) {
        if let Some((x, y)) = self.alike(x, y) {
            launch(self.place(), Kernel::Round, suffix_of::<T>(), x.len(), (x, y));
        }
    }
}
