//! The kernels: in which file of `kernels/` each is, and what its variants are called.

use std::ffi::CString;
use std::hash::{Hash, Hasher};

/// A file of `kernels/`.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    /// Whether it is compiled for each storage type.
    is_typed: bool,
    /// Whether it is compiled for head dimensions.
    is_sized: bool,
}

/// What the files include.
pub(super) const HEADERS: [(&str, &str); 10] = [
    ("types.cuh", include_str!("../../../kernels/types.cuh")),
    ("primitives.cuh", include_str!("../../../kernels/primitives.cuh")),
    ("cells.cuh", include_str!("../../../kernels/cells.cuh")),
    ("team.cuh", include_str!("../../../kernels/team.cuh")),
    ("fragments.cuh", include_str!("../../../kernels/fragments.cuh")),
    ("tile_products.cuh", include_str!("../../../kernels/tile_products.cuh")),
    ("attention.cuh", include_str!("../../../kernels/attention.cuh")),
    ("hopper.cuh", include_str!("../../../kernels/hopper.cuh")),
    ("attention_sm90.cuh", include_str!("../../../kernels/attention_sm90.cuh")),
    ("unfused.cuh", include_str!("../../../kernels/unfused.cuh")),
];

/// How a file is compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) file: &'static File,
    elem: Suffix,
    dims: Dims,
}

impl Source {
    /// The definitions that choose the variant.
    pub(super) fn defines(&self) -> Vec<String> {
        let mut defines = Vec::new();
        if self.file.is_typed {
            defines.push(format!("-DELEM={}", &self.elem.text()[1..]));
        }
        if let Some((qk, v)) = self.dims.sizes() {
            defines.extend([format!("-DQK_DIM={qk}"), format!("-DV_DIM={v}")]);
        }
        defines
    }

    fn key(&self) -> (&str, Suffix, Dims) {
        (self.file.name, self.elem, self.dims)
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// What kernels of several types are told apart by: the type, or the bytes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Suffix {
    None,
    F32,
    F64,
    Bf16,
    F16,
    Bytes1,
    Bytes2,
    Bytes4,
    Bytes8,
}

impl Suffix {
    const COUNT: usize = 9;

    /// For a kernel that only moves elements.
    pub(crate) fn of_size<T>() -> Self {
        match size_of::<T>() {
            1 => Suffix::Bytes1,
            2 => Suffix::Bytes2,
            4 => Suffix::Bytes4,
            _ => Suffix::Bytes8,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Suffix::None => "",
            Suffix::F32 => "_f32",
            Suffix::F64 => "_f64",
            Suffix::Bf16 => "_bf16",
            Suffix::F16 => "_f16",
            Suffix::Bytes1 => "_1",
            Suffix::Bytes2 => "_2",
            Suffix::Bytes4 => "_4",
            Suffix::Bytes8 => "_8",
        }
    }
}

/// Dimensions of query and value heads that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dims {
    /// All, or it has nothing to do with heads.
    Any,
    D64,
    D128,
    D256,
    D192x128,
}

impl Dims {
    const COUNT: usize = 5;

    fn sizes(self) -> Option<(usize, usize)> {
        match self {
            Dims::Any => None,
            Dims::D64 => Some((64, 64)),
            Dims::D128 => Some((128, 128)),
            Dims::D256 => Some((256, 256)),
            Dims::D192x128 => Some((192, 128)),
        }
    }

    /// Those of heads with so many features; [`Dims::Any`] if no kernel is made for them.
    pub(crate) fn of(qk: usize, v: usize) -> Self {
        let all = [Dims::D64, Dims::D128, Dims::D256, Dims::D192x128];
        all.into_iter().find(|dims| dims.sizes() == Some((qk, v))).unwrap_or(Dims::Any)
    }
}

macro_rules! kernels {
    ($($file:ident: $path:literal, $typed:literal, $sized:literal { $($kernel:ident = $name:literal,)* })*) => {
        $(
            static $file: File = File {
                name: concat!($path, ".cu"),
                text: include_str!(concat!("../../../kernels/", $path, ".cu")),
                is_typed: $typed,
                is_sized: $sized,
            };
        )*

        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel {
            $($($kernel,)*)*
        }

        impl Kernel {
            const ALL: &[Kernel] = &[$($(Kernel::$kernel,)*)*];

            fn file(self) -> &'static File {
                match self {
                    $($(Kernel::$kernel => &$file,)*)*
                }
            }

            fn name(self) -> &'static str {
                match self {
                    $($(Kernel::$kernel => $name,)*)*
                }
            }
        }
    };
}

kernels! {
    ROWS: "rows", false, false {
        GatherRows = "gather_rows",
        ScatterRows = "scatter_rows",
        ScatterAddRows = "scatter_add_rows",
        Copy = "copy",
        Fill = "fill",
        Add = "add",
        Widen = "widen",
        Round = "round",
    }
    SUMS: "sums", false, false {
        SumChunks = "sum_chunks",
        SumF64 = "sum_f64",
    }
    NORM: "norm", true, false {
        RmsNorm = "rms_norm",
        RmsNormBackward = "rms_norm_backward",
    }
    ROTARY: "rotary", true, false {
        Rotate = "rotate",
    }
    SWIGLU: "swiglu", true, false {
        Swiglu = "swiglu",
        SwigluBackward = "swiglu_backward",
    }
    EMBEDDING: "embedding", true, false {
        Embed = "embed",
        EmbedOrder = "embed_order",
        EmbedBackward = "embed_backward",
    }
    LOSS: "loss", true, false {
        CrossEntropy = "cross_entropy",
    }
    OPTIMIZER: "optimizer", true, false {
        SumOfSquares = "sum_of_squares",
        Adamw = "adamw",
    }
    PRODUCT: "product", true, false {
        Transpose = "transpose",
        ColumnSums = "column_sums",
    }
    ATTENTION_GENERAL: "attention_general", true, false {
        AttentionForwardGeneral = "attention_forward_general",
        AttentionBackwardKeysGeneral = "attention_backward_keys_general",
        AttentionBackwardQueriesGeneral = "attention_backward_queries_general",
    }
    ATTENTION_FORWARD: "attention_forward", true, true {
        AttentionForward = "attention_forward",
    }
    ATTENTION_BACKWARD: "attention_backward", true, true {
        AttentionBackwardKeys = "attention_backward_keys",
        AttentionBackwardQueries = "attention_backward_queries",
    }
    ATTENTION_FORWARD_SM90: "attention_forward_sm90", true, true {
        AttentionForwardSm90 = "attention_forward_sm90",
    }
    ATTENTION_BACKWARD_SM90: "attention_backward_sm90", true, true {
        AttentionBackwardKeysSm90 = "attention_backward_keys_sm90",
        AttentionBackwardQueriesSm90 = "attention_backward_queries_sm90",
    }
    ATTENTION_MERGE: "attention_merge", false, false {
        AttentionMerge = "attention_merge",
    }
    ATTENTION_DELTA: "attention_delta", true, false {
        AttentionDelta = "attention_delta",
    }
    UNFUSED: "unfused", true, false {
        UnfusedForward = "unfused_forward",
        UnfusedBackwardQueries = "unfused_backward_queries",
        UnfusedBackwardKeys = "unfused_backward_keys",
    }
}

impl Kernel {
    /// The kernel for a type and head dimensions.
    pub(crate) fn variant(self, suffix: Suffix, dims: Dims) -> Variant {
        Variant { kernel: self, suffix, dims }
    }
}

/// A kernel for a type and head dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    kernel: Kernel,
    suffix: Suffix,
    dims: Dims,
}

impl Variant {
    pub(super) const COUNT: usize = Kernel::ALL.len() * Suffix::COUNT * Dims::COUNT;

    /// Another number for each variant, below [`Variant::COUNT`].
    pub(super) fn index(self) -> usize {
        (self.kernel as usize * Suffix::COUNT + self.suffix as usize) * Dims::COUNT + self.dims as usize
    }

    /// What messages call it.
    pub(super) fn kernel(self) -> &'static str {
        self.kernel.name()
    }

    /// What its function is called.
    pub(super) fn name(self) -> CString {
        let dims = self.dims.sizes().map(|(qk, v)| format!("_{qk}_{v}")).unwrap_or_default();
        CString::new(format!("{}{}{dims}", self.kernel.name(), self.suffix.text())).unwrap_or_default()
    }

    pub(super) fn source(self) -> Source {
        let file = self.kernel.file();
        Source {
            file,
            elem: if file.is_typed { self.suffix } else { Suffix::None },
            dims: if file.is_sized { self.dims } else { Dims::Any },
        }
    }

    /// Whether it may have more shared memory than every kernel has.
    pub(super) fn is_large(self) -> bool {
        self.kernel.name().starts_with("attention_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_numbers_and_names_of_their_own() {
        let general = Kernel::AttentionForwardGeneral.variant(Suffix::Bf16, Dims::Any);
        let sized = Kernel::AttentionForward.variant(Suffix::Bf16, Dims::of(192, 128));
        assert_eq!(general.name().to_str(), Ok("attention_forward_general_bf16"));
        assert_eq!(sized.name().to_str(), Ok("attention_forward_bf16_192_128"));
        assert_eq!(sized.source().defines(), ["-DELEM=bf16", "-DQK_DIM=192", "-DV_DIM=128"]);
        assert_eq!(Dims::of(64, 128), Dims::Any);
        let rows = Kernel::GatherRows.variant(Suffix::of_size::<i64>(), Dims::Any);
        assert_eq!(rows.name().to_str(), Ok("gather_rows_8"));
        assert!(rows.source().defines().is_empty());
        assert_eq!(rows.source(), Kernel::Add.variant(Suffix::F64, Dims::Any).source());
        assert!([general, sized, rows].iter().all(|variant| variant.index() < Variant::COUNT));
    }

    #[test]
    fn files_hold_the_kernels_that_are_said_to_be_there() {
        for kernel in Kernel::ALL {
            let (text, name) = (kernel.file().text, kernel.name());
            let is_there = [format!("NAME({name})"), format!("EXPORT({name}"), format!("{name}_##")];
            assert!(is_there.iter().any(|part| text.contains(part)), "{kernel:?}");
        }
    }
}
