//! Which libraries and GPUs there are; what is missing, and where it was sought.

use std::env;
use std::panic::catch_unwind;

use cudarc::{cublaslt, driver, nccl, nvrtc};

use crate::error::SupportError;

/// A library that is loaded when the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver, which comes with the GPU's kernel module.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Messages between GPUs; a device does without.
    Nccl,
}

impl Library {
    /// All that a device needs.
    pub const ALL: [Library; 3] = [Library::Driver, Library::Nvrtc, Library::CublasLt];

    /// The name that people search for.
    pub fn name(self) -> &'static str {
        match self {
            Library::Driver => "the CUDA driver",
            Library::Nvrtc => "NVRTC",
            Library::CublasLt => "cuBLASLt",
            Library::Nccl => "NCCL",
        }
    }

    /// The file, without version.
    pub fn file(self) -> &'static str {
        match self {
            Library::Driver => "libcuda.so",
            Library::Nvrtc => "libnvrtc.so",
            Library::CublasLt => "libcublasLt.so",
            Library::Nccl => "libnccl.so",
        }
    }

    /// How to get it.
    pub fn remedy(self) -> &'static str {
        match self {
            Library::Driver => "install NVIDIA's driver, release 580 or newer",
            Library::Nvrtc => {
                "`pip install nvidia-cuda-nvrtc`, and add the folder nvidia/cu13/lib of site-packages to LD_LIBRARY_PATH"
            }
            Library::Nccl => {
                "`pip install nvidia-nccl-cu13`, add the folder nvidia/nccl/lib of site-packages to LD_LIBRARY_PATH, and \
                 give the file there its second name: `ln -s libnccl.so.2 libnccl.so`"
            }
            Library::CublasLt => {
                "`pip install nvidia-cublas`, and add the folder nvidia/cu13/lib of site-packages to LD_LIBRARY_PATH"
            }
        }
    }

    /// Whether it can be loaded.
    pub fn is_present(self) -> bool {
        // SAFETY: loading these libraries runs NVIDIA's initialisers, which have no conditions.
        unsafe {
            match self {
                Library::Driver => driver::sys::is_culib_present(),
                Library::Nvrtc => nvrtc::sys::is_culib_present(),
                Library::CublasLt => cublaslt::sys::is_culib_present(),
                Library::Nccl => nccl::sys::is_culib_present(),
            }
        }
    }

    /// Whether it can be loaded.
    ///
    /// # Errors
    /// [`SupportError::Cuda`] that says where it was sought, and how to get it.
    pub fn expect(self) -> Result<(), SupportError> {
        if self.is_present() {
            return Ok(());
        }
        Err(SupportError::Cuda(format!("{}: {}", self.missing(), self.remedy())))
    }

    /// That it is missing, and where it was sought.
    pub fn missing(self) -> String {
        let (name, file) = (self.name(), self.file());
        let paths = env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let paths = if paths.is_empty() { "is not set".to_string() } else { format!("is {paths}") };
        let versions = match self {
            // Of its versions there is 2, which is not among those that are sought.
            Library::Nccl => "(libnccl.so.2 is not enough)",
            Library::Driver | Library::Nvrtc | Library::CublasLt => "with or without a version",
        };
        format!(
            "{name} was not found: no {file} {versions} in the system's library folders or in \
             LD_LIBRARY_PATH, which {paths}"
        )
    }
}

/// Whether a device can be opened: all libraries, and a GPU.
///
/// # Errors
/// [`SupportError::Cuda`] with what is missing first.
pub fn ready() -> Result<(), SupportError> {
    Library::ALL.into_iter().try_for_each(Library::expect)?;
    match gpus()?.0.is_empty() {
        false => Ok(()),
        true => Err(SupportError::Cuda(
            "the CUDA driver sees no GPU: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES".to_string(),
        )),
    }
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Number, from 0.
    pub ordinal: usize,
    /// What NVIDIA calls it.
    pub name: String,
    /// Major and minor version of what it can compute.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
}

/// The GPUs, and the CUDA version of the driver as it says it: 13000 for 13.0.
///
/// # Errors
/// [`SupportError::Cuda`] if there is no driver, or it does not start.
pub fn gpus() -> Result<(Vec<Found>, i32), SupportError> {
    Library::Driver.expect()?;
    let found = catch_unwind(|| -> Result<_, driver::DriverError> {
        driver::result::init()?;
        let mut version = 0;
        // SAFETY: the pointer is valid for the call.
        unsafe { driver::sys::cuDriverGetVersion(&raw mut version).result()? };
        let count = driver::result::device::get_count()?;
        let gpus = (0..count).map(found).collect::<Result<Vec<_>, _>>()?;
        Ok((gpus, version))
    });
    match found {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(SupportError::Cuda(format!("the CUDA driver does not start: {}", said(&error)))),
        Err(_) => Err(SupportError::Cuda(
            "the CUDA driver is too old for this program: install release 580 or newer".to_string(),
        )),
    }
}

fn found(ordinal: i32) -> Result<Found, driver::DriverError> {
    use driver::sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };

    let device = driver::result::device::get(ordinal)?;
    let name = driver::result::device::get_name(device)?;
    // SAFETY: the driver has just given the device.
    let (major, minor, memory) = unsafe {
        use driver::result::device::{get_attribute, total_mem};
        (get_attribute(device, MAJOR)?, get_attribute(device, MINOR)?, total_mem(device)?)
    };
    Ok(Found { ordinal: ordinal as usize, name, capability: (major as u32, minor as u32), memory })
}

/// What the driver says of an error.
pub(super) fn said(error: &driver::DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{text} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}
