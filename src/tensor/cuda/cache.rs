//! Compiled kernels, kept on disk from one run to the next.

use std::env;
use std::ffi::CString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

use super::kernel::{HEADERS, Source};

/// The CUBIN of a source for an architecture: from disk if it was compiled before.
pub(super) fn cubin(source: Source, architecture: &str) -> Result<Vec<u8>, String> {
    let options = options(source, architecture);
    let kept = kept_at(source, &options);
    if let Some(image) = kept.as_ref().and_then(|path| fs::read(path).ok()).filter(|image| !image.is_empty()) {
        return Ok(image);
    }
    let image = compile(source, &options)?;
    // A cache that cannot be written costs time, nothing else.
    if let Some(path) = kept {
        let _ = keep(&path, &image);
    }
    Ok(image)
}

fn options(source: Source, architecture: &str) -> Vec<String> {
    let fixed = ["--std=c++17", "-default-device"].map(str::to_string);
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(fixed);
    options.extend(source.defines());
    options
}

/// Where an image is kept: named after everything that it is made of.
fn kept_at(source: Source, options: &[String]) -> Option<PathBuf> {
    let folder = match env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are valid for the call.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().ok()?;
    let mut hasher = DefaultHasher::new();
    (source.file.text, HEADERS, options, major, minor).hash(&mut hasher);
    let name = format!("{}-{:016x}.cubin", source.file.name.trim_end_matches(".cu"), hasher.finish());
    Some(folder.join("context-parallel").join(name))
}

/// Written beside it and renamed, so that no other process reads half of it.
fn keep(path: &std::path::Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&new, image)?;
    fs::rename(&new, path)
}

/// A program of NVRTC, which keeps no reference to what it was made of.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody has the program any more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(source: Source, options: &[String]) -> Result<Vec<u8>, String> {
    let failed =
        |what: &str, error: result::NvrtcError| format!("NVRTC on {}: {what}: {:?}", source.file.name, error.0);
    let text = |text: &str| CString::new(text).map_err(|error| format!("{}: {error}", source.file.name));
    let (code, name) = (text(source.file.text)?, text(source.file.name)?);
    let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
    let headers = HEADERS.iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>, _>>()?;
    let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let header_pointers: Vec<_> = headers.iter().map(|header| header.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: all texts end with a zero and live for the call, which copies them; there are as many names as headers.
    unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program,
            code.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            header_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    }
    .result()
    .map_err(|error| failed("no program", error))?;
    let program = Program(program);
    // SAFETY: the program is alive.
    if let Err(error) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|&byte| byte != 0).collect();
        return Err(failed(&String::from_utf8_lossy(&log), error));
    }
    let mut bytes = 0;
    // SAFETY: the program is alive, the pointer valid for the call.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut bytes) }.result().map_err(|error| failed("no size", error))?;
    let mut image = vec![0u8; bytes];
    // SAFETY: as above; there is room for all bytes.
    unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) }
        .result()
        .map_err(|error| failed("no image", error))?;
    Ok(image)
}
