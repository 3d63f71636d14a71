//! `eval`: loss and perplexity of a model on a text or on token ids, and its logits.

mod arguments;
mod job;
mod logits;
mod work;

use std::process::ExitCode;

pub use arguments::Arguments;
use context_parallel::error::Result;
use job::Logits;
use serde::Serialize;

use super::engine::Cluster;
use super::output;

#[derive(Clone, Debug, Serialize)]
struct Score {
    /// None where no label counts.
    loss: Option<f64>,
    /// Left out where it is larger than any number.
    #[serde(skip_serializing_if = "is_infinite")]
    perplexity: Option<f64>,
    /// The loss in bits, where tokens are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte: Option<f64>,
    /// Labels that count.
    tokens: usize,
}

fn is_infinite(perplexity: &Option<f64>) -> bool {
    perplexity.is_some_and(f64::is_infinite)
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = job::prepare(&arguments, cluster)?;
    work::check_memory(&job, cluster)?;
    if let Some(note) = job.note.as_ref().filter(|_| cluster.speaks()) {
        output::note(note);
    }
    let Some(loss) = work::run(&job, cluster)? else { return Ok(ExitCode::SUCCESS) };
    if !loss.is_finite() {
        // JSON has no such number, and a mean that is not one says nothing.
        output::warn(format!(
            "the loss is {loss}, not a finite number: check the weights, or use a --dtype with a larger range (bf16, \
             f32)"
        ));
        return Ok(ExitCode::FAILURE);
    }
    let tokens = job.input.counted();
    let loss = Some(loss).filter(|_| tokens > 0);
    let bits_per_byte = loss.filter(|_| job.is_bytes).map(|loss| loss / std::f64::consts::LN_2);
    let report = Score { loss, perplexity: loss.map(f64::exp), bits_per_byte, tokens };
    if arguments.json {
        output::json(&report);
    } else {
        let tokens = output::count(tokens as u64);
        let bits = bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        output::sentence(match loss {
            Some(loss) => {
                format!("loss {loss:.4} nats per token{bits}, perplexity {:.3}, over {tokens} tokens", loss.exp())
            }
            None => "no label counts, so there is no loss".to_string(),
        });
        if let Some(Logits { path, .. }) = &job.logits {
            output::line(format!("logits are in {}", path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perplexity_that_is_no_number_is_not_that_of_no_label() {
        let json = |loss: Option<f64>| {
            let report = Score { loss, perplexity: loss.map(f64::exp), bits_per_byte: None, tokens: 1 };
            serde_json::to_string(&report).unwrap()
        };
        assert_eq!(json(Some(0.0)), r#"{"loss":0.0,"perplexity":1.0,"tokens":1}"#);
        assert_eq!(json(Some(710.0)), r#"{"loss":710.0,"tokens":1}"#);
        assert_eq!(json(None), r#"{"loss":null,"perplexity":null,"tokens":1}"#);
    }
}
