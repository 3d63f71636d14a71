//! Matrix products by cuBLASLt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};
use cudarc::driver;

use super::launch::RawView;
use crate::tensor::DType;

/// Bytes that the library may use inside a product.
const WORKSPACE: usize = 32 << 20;

/// Alignment that the library makes use of, at most.
const LARGEST_ALIGNMENT: u64 = 256;

/// One side of a product: a matrix in rows, transposed or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) view: RawView,
    pub(crate) is_transposed: bool,
}

/// `out = left * right + bias`, or `out += left * right`; all matrices in rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) left: Side,
    pub(crate) right: Side,
    pub(crate) out: RawView,
    /// Of both sides and the bias.
    pub(crate) dtype: DType,
    pub(crate) out_dtype: DType,
    pub(crate) accumulates: bool,
    /// An element per column.
    pub(crate) bias: Option<driver::sys::CUdeviceptr>,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sides: [(i64, i64, i64, bool, u64); 2],
    out: (i64, i64, i64, u64),
    dtypes: [DType; 2],
    accumulates: bool,
    has_bias: bool,
}

/// A product of one shape, ready to run.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: nobody has them any more.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}

/// The library, with descriptions and algorithms by shape, for one stream.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Option<driver::sys::CUdeviceptr>,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the library takes its handles from any thread, one at a time.
unsafe impl Send for Blas {}

fn said(error: result::CublasError) -> String {
    format!("cuBLASLt: {:?}", error.0)
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::F64 => sys::cudaDataType::CUDA_R_64F,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

/// The largest power of two that divides an address, as far as it matters.
fn alignment(address: u64) -> u64 {
    (1 << address.trailing_zeros().min(63)).min(LARGEST_ALIGNMENT)
}

impl Blas {
    pub(super) fn new() -> Result<Self, String> {
        let handle = result::create_handle().map_err(said)?;
        Ok(Blas { handle, workspace: None, plans: HashMap::new() })
    }

    /// Enqueues a product.
    pub(super) fn run(&mut self, product: &Product, stream: driver::sys::CUstream) -> Result<(), String> {
        let workspace = self.workspace()?;
        let plan = match self.plans.entry(Key::of(product)) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle, product)?),
        };
        if let Some(bias) = product.bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (alpha, beta) = (1f32, if product.accumulates { 1f32 } else { 0f32 });
        let pointer = |view: RawView| view.address as *const c_void;
        // Matrices in rows are transposed matrices in columns, so the sides change places.
        let (a, b, out) = (pointer(product.right.view), pointer(product.left.view), pointer(product.out));
        let [a_layout, b_layout, out_layout] = plan.layouts;
        // SAFETY: all handles are alive; the addresses are those of the product, whose layouts say what is there.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a,
                a_layout,
                b,
                b_layout,
                out,
                out_layout,
                out.cast_mut(),
                out_layout,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(said)
    }

    fn workspace(&mut self) -> Result<driver::sys::CUdeviceptr, String> {
        if let Some(workspace) = self.workspace {
            return Ok(workspace);
        }
        // SAFETY: only the library uses it.
        let workspace = unsafe { driver::result::malloc_sync(WORKSPACE) }
            .map_err(|error| format!("{WORKSPACE} bytes for matrix products: {}", super::probe::said(&error)))?;
        self.workspace = Some(workspace);
        Ok(workspace)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nobody has them any more; the driver waits for uses of the memory.
        unsafe {
            if let Some(workspace) = self.workspace {
                let _ = driver::result::free_sync(workspace);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

impl Key {
    fn of(product: &Product) -> Key {
        let side = |Side { view, is_transposed }: Side| {
            (view.rows, view.cols, view.stride, is_transposed, alignment(view.address))
        };
        let out = product.out;
        Key {
            sides: [side(product.left), side(product.right)],
            out: (out.rows, out.cols, out.stride, alignment(out.address)),
            dtypes: [product.dtype, product.out_dtype],
            accumulates: product.accumulates,
            has_bias: product.bias.is_some(),
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: &Product) -> Result<Plan, String> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;

        // True single precision for `f32`: TF32 would have to be asked for.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).map_err(said)?;
        let layout = |view: RawView, dtype| {
            // A leading dimension is at least the length of a row, whatever it was for a single one.
            let stride = view.stride.max(view.cols);
            result::create_matrix_layout(data_type(dtype), view.cols as u64, view.rows as u64, stride).map_err(said)
        };
        let layouts = [
            layout(product.right.view, product.dtype)?,
            layout(product.left.view, product.dtype)?,
            layout(product.out, product.out_dtype)?,
        ];
        // SAFETY: an algorithm is plain data, and this one is replaced before it is used.
        let algorithm = unsafe { std::mem::zeroed() };
        let mut plan = Plan { description, layouts, algorithm };
        let transposed = |side: Side| i32::from(side.is_transposed);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed(product.right))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &transposed(product.left))?;
        if let Some(bias) = product.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        plan.algorithm = plan.choose(handle, product)?;
        Ok(plan)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), String> {
        // SAFETY: the description is alive, and the value is read during the call.
        unsafe {
            result::set_matmul_desc_attribute(
                self.description,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
        .map_err(said)
    }

    fn choose(&self, handle: sys::cublasLtHandle_t, product: &Product) -> Result<sys::cublasLtMatmulAlgo_t, String> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;

        let preference = Preference(result::create_matmul_pref().map_err(said)?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let aligned = |view: RawView| alignment(view.address) as u32;
        let out = aligned(product.out);
        for (attribute, bytes) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(product.right.view)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(product.left.view)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ] {
            preference.set(attribute, &bytes)?;
        }
        let [a, b, out] = self.layouts;
        // SAFETY: all handles are alive.
        let found =
            unsafe { result::get_matmul_algo_heuristic(handle, self.description, a, b, out, out, preference.0) };
        found.map(|found| found.algo).map_err(|error| format!("no algorithm for {product:?}: {}", said(error)))
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), String> {
        // SAFETY: the preference is alive, and the value is read during the call.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(said)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_powers_of_two_that_matter() {
        assert_eq!([0x1000, 0x1040, 0x1002, 0x1001, 0].map(alignment), [256, 64, 2, 1, 256]);
    }
}
