//! How long a user waits for a program of his own with one model type in it: a package with `GptModel<Ring, Thd>` alone,
//! built in release after everything that it depends on, this library among it, is built.
//!
//! `cargo bench --bench small_program`

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

const PROGRAM: &str = r#"use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Packed, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, GptModel, Sizes};
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn main() -> Result<()> {
    let sizes = Sizes { vocab_size: 32, hidden_size: 16, intermediate_size: 32, layers: 2, heads: 2, kv_heads: 1 };
    let config = Config::llama(sizes)?;
    let (tokens, labels): (Vec<i64>, Vec<i64>) = (0..21).map(|token| (token, token + 1)).unzip();
    let sums = threads::run(2, |comm| {
        let device = Cpu::new(1);
        let model = GptModel::<Ring, Thd>::new(device.clone(), &config, 0)?;
        let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), device, comm)?;
        let batch = Arc::new(Packed::from_lengths(&[21])?);
        let inputs = Inputs::new(&handler, batch, &tokens, &labels)?;
        let activations = model.forward(&handler, &inputs.tokens)?;
        let mut gradients = model.zero_gradients();
        let (labels, weights) = (&inputs.labels, &inputs.weights);
        let (sum, dhidden) = model.loss_backward(&activations, labels, weights, 1.0, &mut gradients)?;
        model.backward(&handler, activations, &dhidden, &mut gradients)?;
        Ok(sum)
    })?;
    println!("loss {:.4}", sums.iter().sum::<f64>() / 21.0);
    Ok(())
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let library = env!("CARGO_MANIFEST_DIR");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(library).join("target"), Into::into);
    let folder = target.join("small-program");
    let manifest = format!(
        "[package]\nname = \"small-program\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\ncontext-parallel = {{ path = {library:?} }}\n"
    );
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(Path::new(library).join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let main = folder.join("src/main.rs");
    let build = || -> Result<Duration, Box<dyn Error>> {
        fs::write(&main, PROGRAM)?;
        let started = Instant::now();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--quiet", "--target-dir"]).arg(&target).current_dir(&folder);
        match cargo.status()?.success() {
            true => Ok(started.elapsed()),
            false => Err("the program does not build".into()),
        }
    };
    build()?;
    let mut seconds: Vec<f64> = (0..3).map(|_| build().map(|time| time.as_secs_f64())).collect::<Result<_, _>>()?;
    seconds.sort_by(f64::total_cmp);
    println!("GptModel<Ring, Thd> alone, forward and backward: built in {:.1} s (median of 3)", seconds[1]);
    let ran = Command::new(target.join("release/small-program")).status()?;
    if ran.success() { Ok(()) } else { Err("the program does not run".into()) }
}
