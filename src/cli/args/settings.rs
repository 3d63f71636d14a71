//! Choices that go together, and what else of a command has to go with them.

use context_parallel::error::Result;
use context_parallel::layout::{Layout, Thd};
use context_parallel::plan::Wire;
use context_parallel::solve::schedule::check_fits;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::strategy::{CpStrategy, Dynamic};
use context_parallel::tensor::DType;
use context_parallel::train::documents::Separator;

use super::super::hardware::Hardware;
use super::refusals::numbers;
use super::values::positive;

/// Choices that exist and go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A supported combination, by canonical names, and its ranks.
    pub choice: Choice,
    /// Threads per rank; 1 where nothing is run.
    pub threads: usize,
    pub dtype: DType,
    pub hardware: Hardware,
    /// Whether the ranks of a group that exchanges heads are neighbours.
    pub(super) inner_adjacent: bool,
}

impl Settings {
    /// In what numbers gradients of keys and values travel; refuses a rounding that would be none.
    pub fn gradient_wire(&self, bf16_wire: bool) -> Result<Wire> {
        if !bf16_wire {
            return Ok(Wire::Accumulated);
        }
        if self.dtype != DType::Bf16 {
            let dtype = self.dtype;
            let message =
                format!("--bf16-wire is for --dtype bf16, not for {dtype}: leave it out, or use --dtype bf16");
            return Err(numbers(message));
        }
        if self.choice.degree == 1 {
            return Err(numbers(
                "--bf16-wire is for several ranks, --cp is 1: leave it out, or use --cp 2".to_string(),
            ));
        }
        Ok(Wire::Stored)
    }

    /// Chooses how `ring-ulysses` groups the ranks where the user has not, and refuses heads that cannot be shared out.
    pub fn fit_heads(&mut self, q_heads: usize) -> Result<()> {
        self.choice = select::fit_heads(self.choice.clone(), q_heads)?;
        if let Some(grid) = &mut self.choice.grid {
            grid.inner_adjacent = self.inner_adjacent;
        }
        Ok(())
    }

    /// Whether every document gets ranks of its own.
    pub fn is_dynamic(&self) -> bool {
        self.choice.strategy == <Dynamic>::NAME
    }

    /// The limit on the tokens of a rank in a micro-batch; refuses one for a strategy that makes no micro-batches, and
    /// one that a document of these lengths does not keep.
    pub fn tokens_per_rank(&self, asked: Option<usize>, lengths: &[usize]) -> Result<Option<usize>> {
        let Some(tokens) = asked else { return Ok(None) };
        if !self.is_dynamic() {
            let strategy = &self.choice.strategy;
            return Err(numbers(format!(
                "--tokens-per-rank is for dynamic, not for {strategy}: leave it out, or use --strategy dynamic"
            )));
        }
        let tokens = positive("--tokens-per-rank", tokens)?;
        check_fits(lengths, self.choice.degree, tokens)
            .map_err(|error| numbers(format!("--tokens-per-rank is {tokens}: {error}")))?;
        Ok(Some(tokens))
    }

    /// What separates documents; refuses layouts that cannot hold sequences of different lengths.
    pub fn separator(&self, asked: Option<&str>) -> Result<Option<Separator>> {
        let Some(text) = asked else { return Ok(None) };
        if self.choice.layout != Thd::NAME {
            let layout = &self.choice.layout;
            return Err(numbers(format!(
                "--document-separator makes sequences of different lengths, which layout {layout} does not hold: use \
                 --layout thd, or leave it out"
            )));
        }
        Separator::new(unescaped("--document-separator", text)?).map(Some)
    }

    /// Refuses sequences of different lengths in a layout that does not hold them; `what` has them.
    pub fn check_lengths(&self, what: &str, lengths: &[usize]) -> Result<()> {
        let (layout, first) = (&self.choice.layout, lengths.first().copied().unwrap_or(0));
        match lengths.iter().find(|&&length| length != first) {
            Some(other) if layout != Thd::NAME => Err(numbers(format!(
                "{what} has documents of {first} and of {other} tokens, but layout {layout} holds sequences of one \
                 length: use --layout thd"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses more ranks than a sequence has tokens, where all ranks share each.
    pub fn check_seq_len(&self, seq_len: usize) -> Result<()> {
        let cp = self.choice.degree;
        if cp > seq_len && !self.is_dynamic() {
            return Err(numbers(format!(
                "--cp is {cp} but sequences have {seq_len} tokens, so ranks would hold none: use --cp {seq_len} or less, \
                 or longer sequences"
            )));
        }
        Ok(())
    }
}

/// Text in which `\n`, `\r`, `\t`, `\0` and `\\` stand for one byte.
fn unescaped(option: &str, text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        out.push(match letter {
            '\\' => match letters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some('\\') => '\\',
                other => {
                    let escape = other.map_or("\\ at its end".to_string(), |letter| format!("\\{letter}"));
                    return Err(numbers(format!("{option} has {escape}: use \\n, \\r, \\t, \\0, and \\\\ for \\")));
                }
            },
            letter => letter,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_written_with_escapes() {
        let unescaped = |text| unescaped("--option", text).map_err(|error| error.to_string());
        assert_eq!(unescaped(r"\n\n"), Ok("\n\n".into()));
        assert_eq!(unescaped(r"<|end|>\r\t\0\\n"), Ok("<|end|>\r\t\0\\n".into()));
        assert!(unescaped(r"a\x").unwrap_err().contains(r"--option has \x: use \n"));
        assert!(unescaped(r"a\").unwrap_err().contains(r"has \ at its end"));
    }
}
