//! An open file of token ids: its tensors by name, checked, and what it says of documents.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{DataError, Error, Result};
use crate::layout::{Batch, Packed};
use crate::order::{RowDocuments, place_in_rows};

/// Name of the tensor that holds the ids.
pub const TOKENS: &str = "tokens";
/// What transformers calls it.
pub(super) const INPUT_IDS: &str = "input_ids";
pub(super) const LABELS: &str = "labels";
pub(super) const LOSS_MASK: &str = "loss_mask";
pub(super) const DOCUMENT_IDS: &str = "document_ids";
pub(super) const CU_SEQLENS: &str = "cu_seqlens";
pub(super) const POSITION_IDS: &str = "position_ids";
pub(super) const ATTENTION_MASK: &str = "attention_mask";
pub(super) const KNOWN: [&str; 8] =
    [TOKENS, INPUT_IDS, LABELS, LOSS_MASK, DOCUMENT_IDS, CU_SEQLENS, POSITION_IDS, ATTENTION_MASK];

/// A file, for reading and for messages.
pub(super) struct TensorFile<'a> {
    pub(super) path: &'a Path,
    pub(super) tensors: SafeTensors<'a>,
}

impl TensorFile<'_> {
    pub(super) fn wrong(&self, message: String) -> Error {
        DataError::Unusable(format!("{}: {message}", self.path.display())).into()
    }

    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        names
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    pub(super) fn check_names(&self) -> Result<()> {
        // A file of other things altogether lacks the ids: that says more than the first of the other things.
        let is_of_ids = self.has(TOKENS) || self.has(INPUT_IDS);
        if let Some(name) = self.names().into_iter().find(|name| is_of_ids && !KNOWN.contains(name)) {
            return Err(
                self.wrong(format!("tensor \"{name}\" is not known: leave it out; known are {}", KNOWN.join(", ")))
            );
        }
        if self.has(TOKENS) && self.has(INPUT_IDS) {
            return Err(self.wrong(format!("there are both \"{TOKENS}\" and \"{INPUT_IDS}\": leave one of them out")));
        }
        Ok(())
    }

    pub(super) fn whole_numbers(&self, name: &str, view: TensorView) -> Result<Vec<i64>> {
        let data = view.data();
        match view.dtype() {
            Dtype::I64 => Ok(data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()),
            Dtype::I32 => Ok(data.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect()),
            other => Err(self.wrong(format!("tensor \"{name}\" has type {other:?}, expected I64 or I32"))),
        }
    }

    /// A tensor, where there is one, that must have this shape.
    pub(super) fn view(&self, name: &str, [rows, seq]: [usize; 2]) -> Result<Option<TensorView<'_>>> {
        let Ok(view) = self.tensors.tensor(name) else { return Ok(None) };
        if *view.shape() != [rows, seq] {
            let shape = view.shape();
            return Err(self.wrong(format!("tensor \"{name}\" has shape {shape:?}, expected [{rows}, {seq}]")));
        }
        Ok(Some(view))
    }

    pub(super) fn shaped(&self, name: &str, shape: [usize; 2]) -> Result<Option<Vec<i64>>> {
        self.view(name, shape)?.map(|view| self.whole_numbers(name, view)).transpose()
    }

    /// A tensor of 0 and 1, where there is one.
    pub(super) fn flags(&self, name: &str, shape: [usize; 2]) -> Result<Option<Vec<bool>>> {
        let Some(view) = self.view(name, shape)? else { return Ok(None) };
        let (dtype, size) = (view.dtype(), view.dtype().bitsize() / 8);
        let one: &[u8] = match dtype {
            Dtype::F64 => &1f64.to_le_bytes(),
            Dtype::F32 => &1f32.to_le_bytes(),
            Dtype::F16 => &half::f16::ONE.to_le_bytes(),
            Dtype::BF16 => &half::bf16::ONE.to_le_bytes(),
            Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::I8 | Dtype::BOOL => &1i64.to_le_bytes()[..size],
            other => return Err(self.wrong(format!("tensor \"{name}\" has type {other:?}, expected 0 and 1"))),
        };
        let mut flags = Vec::with_capacity(shape[0] * shape[1]);
        for value in view.data().chunks_exact(size) {
            if value != one && value.iter().any(|&byte| byte != 0) {
                let (row, column) = place_in_rows(flags.len(), shape[1]);
                let fix = if name == LOSS_MASK { "0 or 1 per token" } else { "0 or 1, and document_ids for documents" };
                return Err(self.wrong(format!(
                    "\"{name}\" has a value that is neither 0 nor 1 at row {row}, column {column}: use {fix}"
                )));
            }
            flags.push(value == one);
        }
        Ok(Some(flags))
    }

    /// Where documents begin, by all that the file says of it.
    pub(super) fn documents(&self, shape: [usize; 2], kept: &[bool]) -> Result<RowDocuments> {
        let [rows, seq] = shape;
        let rows_alone = RowDocuments::new(rows * seq, seq, |_| false);
        if let Some(token) = rows_alone.kept_after_padding(kept) {
            return Err(self.wrong(format!(
                "\"{ATTENTION_MASK}\" has 0 before 1 at {}: pad rows at their ends only",
                place(&rows_alone, token)
            )));
        }
        let by_ids = self.by_document_ids(shape, kept)?;
        let by_ends = self.by_cu_seqlens(shape, kept)?;
        if let (Some(ids), Some(ends)) = (&by_ids, &by_ends) {
            let differs = |&token: &usize| ids.starts()[token] != ends.starts()[token];
            if let Some(token) = (0..kept.len()).find(differs) {
                let at = place(ids, token);
                return Err(self.wrong(format!(
                    "\"{DOCUMENT_IDS}\" and \"{CU_SEQLENS}\" differ in whether a document begins at {at}: leave one out"
                )));
            }
        }
        let given = by_ids.or(by_ends);
        let positions = match self.tensors.tensor(POSITION_IDS) {
            // The same in every row.
            Ok(view) if *view.shape() == [1, seq] => Some(self.whole_numbers(POSITION_IDS, view)?.repeat(rows)),
            _ => self.shaped(POSITION_IDS, shape)?,
        };
        let Some(positions) = positions else { return Ok(given.unwrap_or(rows_alone)) };
        let documents = given.unwrap_or_else(|| RowDocuments::from_positions(&positions, seq, kept));
        let expected = documents.positions().map(|position| position as i64).zip(&positions);
        let differs = |&(token, (expected, &found)): &(usize, (i64, &i64))| kept[token] && expected != found;
        if let Some((token, (expected, found))) = expected.enumerate().find(differs) {
            return Err(self.wrong(format!(
                "\"{POSITION_IDS}\" has {found} at {}, where the documents imply {expected}: positions count from 0 in \
                 each document, which {DOCUMENT_IDS} or {CU_SEQLENS} can give",
                place(&documents, token)
            )));
        }
        Ok(documents)
    }

    pub(super) fn by_document_ids(&self, shape: [usize; 2], kept: &[bool]) -> Result<Option<RowDocuments>> {
        let Some(ids) = self.shaped(DOCUMENT_IDS, shape)? else { return Ok(None) };
        let documents = RowDocuments::from_ids(&ids, shape[1], kept);
        if let Some(token) = documents.taken_up_again(&ids) {
            return Err(self.wrong(format!(
                "\"{DOCUMENT_IDS}\" has {} again at {}, after another document: let the tokens of a document follow \
                 each other",
                ids[token],
                place(&documents, token)
            )));
        }
        Ok(Some(documents))
    }

    pub(super) fn by_cu_seqlens(&self, [rows, seq]: [usize; 2], kept: &[bool]) -> Result<Option<RowDocuments>> {
        let Ok(view) = self.tensors.tensor(CU_SEQLENS) else { return Ok(None) };
        if view.shape().len() != 1 {
            let shape = view.shape();
            return Err(self.wrong(format!("tensor \"{CU_SEQLENS}\" has shape {shape:?}, expected [documents + 1]")));
        }
        let ends = self.whole_numbers(CU_SEQLENS, view)?;
        let pack = Packed::from_cu_seqlens(&ends).map_err(|error| self.wrong(error.to_string()))?;
        if pack.tokens() != rows * seq {
            return Err(self.wrong(format!(
                "\"{CU_SEQLENS}\" ends at {}, but there are {rows} x {seq} = {} tokens: give the ends of all documents \
                 of all rows",
                pack.tokens(),
                rows * seq
            )));
        }
        let documents = RowDocuments::from_starts(pack.starts(), seq, kept);
        documents.map(Some).map_err(|first| {
            let (row, _) = place_in_rows(first, seq);
            self.wrong(format!(
                "a document of \"{CU_SEQLENS}\" goes on from row {} to row {row}: let one end at {first}",
                row - 1
            ))
        })
    }

    /// Refuses ids outside the vocabulary, of those that count.
    pub(super) fn check_ids(
        &self,
        name: &str,
        ids: &[i64],
        documents: &RowDocuments,
        vocab: usize,
        counts: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let outside = |token: usize| !usize::try_from(ids[token]).is_ok_and(|id| id < vocab);
        let Some(token) = (0..ids.len()).find(|&token| counts(token) && outside(token)) else { return Ok(()) };
        let fix = if name == LABELS { ", and -100 for a label that does not count" } else { "" };
        Err(self.wrong(format!(
            "\"{name}\" has {} at {}: the vocabulary has ids 0..{vocab}{fix}; use ids of the model's own tokenizer",
            ids[token],
            place(documents, token)
        )))
    }
}

pub(super) fn place(documents: &RowDocuments, token: usize) -> String {
    let (row, column) = documents.place(token);
    format!("row {row}, column {column}")
}
