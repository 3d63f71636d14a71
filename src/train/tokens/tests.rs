//! Files of token ids that are read, and those that are refused.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;

/// A tensor as `i64`.
type Tensor<'a> = (&'a str, &'a [usize], &'a [i64]);

const N: i64 = IGNORED;

fn write(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.safetensors");
    let view = |dtype: Dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, data)| (*name, view(*dtype, shape, data)));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    (folder, path)
}

fn bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read_as(tensors: &[Tensor], asked: Option<LabelMeaning>) -> Result<TokenFile> {
    let tensors: Vec<_> =
        tensors.iter().map(|(name, shape, values)| (*name, Dtype::I64, *shape, bytes(values))).collect();
    let (_folder, path) = write(&tensors);
    read_tokens(&path, 10, asked)
}

fn read(tensors: &[Tensor]) -> TokenFile {
    read_as(tensors, None).unwrap()
}

#[track_caller]
fn refused(tensors: &[Tensor], expected: &[&str]) {
    let error = read_as(tensors, None).unwrap_err();
    let message = error.to_string();
    assert!(error.is_input() && message.contains("tokens.safetensors"), "{message}");
    for part in expected {
        assert!(message.contains(part), "\"{part}\" is not in {message}");
    }
}

const ROWS: Tensor = ("tokens", &[2, 4], &[5, 6, 7, 8, 1, 2, 3, 4]);

#[test]
fn reads_rows_of_ids() {
    for name in ["tokens", "input_ids"] {
        let file = read(&[(name, &[2, 3], &[5, 6, 7, 1, 8, 9])]);
        assert_eq!((file.shape, &file.batch.lengths[..], file.labels), ([2, 3], &[3, 3][..], None));
        assert_eq!(file.batch.tokens, [5, 6, 7, 1, 8, 9]);
        assert_eq!(file.batch.labels, [6, 7, N, 8, 9, N]);
    }
    let (_folder, path) =
        write(&[("tokens", Dtype::I32, &[1, 2], [3i32, 4].iter().flat_map(|id| id.to_le_bytes()).collect())]);
    assert_eq!(read_tokens(&path, 10, None).unwrap().batch.tokens, [3, 4]);
}

#[test]
fn labels_mean_what_they_mean_to_hugging_face_or_megatron() {
    // Of the first row, the last two tokens; of the second, all.
    let unshifted = read(&[ROWS, ("labels", &[2, 4], &[N, N, 7, 8, 1, 2, 3, 4])]);
    assert_eq!(unshifted.labels, Some(LabelMeaning::Unshifted));
    assert_eq!(unshifted.batch.labels, [N, 7, 8, N, 2, 3, 4, N]);
    // The last token of a row has a label that is not in the row.
    let shifted = read(&[ROWS, ("labels", &[2, 4], &[N, 7, N, 9, 2, 3, 4, 5])]);
    assert_eq!(shifted.labels, Some(LabelMeaning::Shifted));
    assert_eq!(shifted.batch.labels, [N, 7, N, 9, 2, 3, 4, 5]);
    // Only the last label counts: it is the last token, and says nothing of a shift.
    assert_eq!(read(&[ROWS, ("labels", &[2, 4], &[N, N, N, 8, N, N, N, N])]).batch.labels, [N, N, 8, N, N, N, N, N]);
    assert_eq!(read(&[ROWS, ("labels", &[2, 4], &[N; 8])]).batch.counted(), 0);
}

#[test]
fn labels_whose_meaning_is_not_plain_are_refused_until_it_is_said() {
    let own: [Tensor; 2] = [ROWS, ("labels", &[2, 4], &[N, 7, 7, N, N, N, N, N])];
    refused(&own, &["neither", "row 0, column 1 has label 7, token 6", "--labels", "unshifted", "shifted"]);
    let with = |meaning| read_as(&own, Some(meaning)).unwrap().batch.labels;
    assert_eq!(with(LabelMeaning::Unshifted), [7, 7, N, N, N, N, N, N]);
    assert_eq!(with(LabelMeaning::Shifted), [N, 7, 7, N, N, N, N, N]);
    // One id all along: both.
    let both: [Tensor; 2] = [("tokens", &[1, 4], &[3; 4]), ("labels", &[1, 4], &[N, 3, 3, N])];
    refused(&both, &["both the tokens and the tokens after them", "--labels"]);
    assert_eq!(read_as(&both, Some(LabelMeaning::Unshifted)).unwrap().batch.labels, [3, 3, N, N]);
    let error = read_as(&[ROWS], Some(LabelMeaning::Shifted)).unwrap_err().to_string();
    assert!(error.contains("no tensor \"labels\""), "{error}");
}

#[test]
fn documents_are_given_in_three_ways() {
    let ids: Tensor = ("document_ids", &[2, 4], &[0, 0, 0, 1, 1, 1, 2, 2]);
    let ends: Tensor = ("cu_seqlens", &[5], &[0, 3, 4, 6, 8]);
    let positions: Tensor = ("position_ids", &[2, 4], &[0, 1, 2, 0, 0, 1, 0, 1]);
    let expected = read(&[ROWS, ids]);
    assert_eq!((&expected.batch.lengths[..], expected.shape), (&[3, 1, 2, 2][..], [2, 4]));
    assert_eq!(expected.batch.labels, [6, 7, N, N, 2, N, 4, N], "nothing is predicted across documents");
    for others in [&[ends][..], &[positions], &[ids, ends], &[ids, positions], &[ids, ends, positions]] {
        assert_eq!(read(&[&[ROWS], others].concat()), expected, "{others:?}");
    }
    let empty: Tensor = ("cu_seqlens", &[6], &[0, 3, 3, 4, 6, 8]);
    assert_eq!(read(&[ROWS, empty]), expected, "a document without tokens");
    assert_eq!(read(&[ROWS, ("position_ids", &[2, 4], &[0, 1, 2, 3, 0, 1, 2, 3])]), read(&[ROWS]));
    assert_eq!(read(&[ROWS, ("position_ids", &[1, 4], &[0, 1, 2, 3])]), read(&[ROWS]), "of every row");
    assert_eq!(read(&[ROWS, ("position_ids", &[1, 4], &[0, 1, 0, 1])]).batch.lengths, [2; 4]);
    // Labels at their own places: one that would cross is not counted. Shifted ones count as they are given.
    let unshifted: Tensor = ("labels", &[2, 4], &[5, 6, 7, 8, 1, 2, 3, 4]);
    assert_eq!(read(&[ROWS, ids, unshifted]).batch.labels, expected.batch.labels);
    let shifted: Tensor = ("labels", &[2, 4], &[6, 7, 8, 9, 2, 9, 4, N]);
    assert_eq!(read(&[ROWS, ids, shifted]).batch.labels, shifted.2);
    let without: Tensor = ("labels", &[2, 4], &[6, 7, N, 9, 2, 9, 4, N]);
    assert_eq!(read(&[ROWS, ids, without]).batch.labels, without.2);
    let mask: Tensor = ("loss_mask", &[2, 4], &[1, 1, 0, 1, 1, 1, 1, 1]);
    assert_eq!(read(&[ROWS, ids, shifted, mask]).batch.labels, without.2);
}

#[test]
fn documents_that_contradict_each_other_are_refused() {
    let ids: Tensor = ("document_ids", &[2, 4], &[0, 0, 0, 1, 1, 1, 2, 2]);
    refused(&[ROWS, ("document_ids", &[2, 4], &[0, 0, 1, 0, 1, 1, 2, 2])], &["0 again at row 0, column 3"]);
    refused(&[ROWS, ids, ("cu_seqlens", &[4], &[0, 4, 6, 8])], &["differ", "row 0, column 3"]);
    refused(
        &[ROWS, ids, ("position_ids", &[2, 4], &[0, 1, 2, 3, 0, 1, 0, 1])],
        &["has 3 at row 0, column 3", "imply 0", "from 0 in each document"],
    );
    refused(&[ROWS, ("position_ids", &[2, 4], &[0, 1, 2, 3, 4, 5, 6, 7])], &["has 4 at row 1, column 0", "imply 0"]);
    refused(&[ROWS, ("position_ids", &[2, 4], &[0, 2, 4, 6, 0, 1, 2, 3])], &["has 2 at row 0, column 1", "imply 1"]);
    let ends = |ends: &[i64], expected: &[&str]| refused(&[ROWS, ("cu_seqlens", &[ends.len()], ends)], expected);
    ends(&[0, 3, 6, 8], &["goes on from row 0 to row 1", "end at 4"]);
    ends(&[0, 4, 7], &["ends at 7", "2 x 4 = 8 tokens"]);
    ends(&[1, 4, 8], &["starts at 1"]);
    ends(&[0, 4, 3, 8], &["from 4 to 3 at entry 2"]);
    ends(&[0, i64::MAX], &["ends at 9223372036854775807"]);
    ends(&[0, i64::MIN], &["cu_seqlens decreases"]);
    ends(&[], &["cu_seqlens is empty"]);
}

#[test]
fn padding_at_the_end_of_rows_is_not_predicted() {
    let mask: Tensor = ("attention_mask", &[2, 4], &[1, 1, 1, 0, 1, 1, 1, 1]);
    let file = read(&[ROWS, mask]);
    assert_eq!(file.batch.labels, [6, 7, N, N, 2, 3, 4, N]);
    assert_eq!((&file.batch.lengths[..], file.shape), (&[4, 4][..], [2, 4]));
    assert_eq!(read(&[ROWS, ("attention_mask", &[2, 4], &[1; 8])]), read(&[ROWS]));
    // Positions and documents of padding are anything.
    let rest: [Tensor; 2] =
        [("position_ids", &[2, 4], &[0, 1, 2, 1, 0, 1, 2, 3]), ("document_ids", &[2, 4], &[0, 0, 0, -1, 0, 0, 0, 0])];
    assert_eq!(read(&[ROWS, mask, rest[0]]).batch.labels, file.batch.labels);
    assert_eq!(read(&[ROWS, mask, rest[1]]).batch.labels, file.batch.labels);
    let zeros: Tensor = ("position_ids", &[2, 4], &[0, 1, 2, 0, 0, 1, 2, 3]);
    let ends: Tensor = ("cu_seqlens", &[4], &[0, 3, 4, 8]);
    for padded in [rest[1], zeros, ends] {
        assert_eq!(read(&[ROWS, mask, padded]).batch.lengths, [4, 4], "padding begins no document: {padded:?}");
    }
    assert_eq!(read(&[ROWS, mask, rest[1], ends]), file);
    // A shifted label at the last token that is none is known to who wrote it, even if it looks like the padding.
    let shifted: Tensor = ("labels", &[2, 4], &[6, 7, 8, N, 2, 3, 4, 5]);
    assert_eq!(read(&[ROWS, mask, shifted]).batch.labels, [6, 7, 8, N, 2, 3, 4, 5]);
    refused(
        &[ROWS, mask, ("labels", &[2, 4], &[5, 6, 7, 8, 1, 2, 3, 4])],
        &["8 at row 0, column 3", "padding", "-100"],
    );
    refused(
        &[ROWS, ("attention_mask", &[2, 4], &[1, 1, 1, 1, 0, 1, 1, 1])],
        &["row 1, column 1", "at their ends only"],
    );
    refused(
        &[ROWS, ("attention_mask", &[2, 4], &[1, 1, 2, 2, 1, 1, 1, 1])],
        &["neither 0 nor 1 at row 0, column 2", "document_ids"],
    );
}

#[test]
fn a_loss_mask_is_of_predictions_and_of_any_type() {
    let ids = bytes(ROWS.2);
    let flags = [0u8, 1, 1, 1, 1, 0, 0, 1];
    let wide =
        |one: &[u8]| flags.iter().flat_map(|&flag| one.iter().map(move |&byte| byte * flag)).collect::<Vec<u8>>();
    for (dtype, one) in [
        (Dtype::BOOL, &[1][..]),
        (Dtype::U8, &[1]),
        (Dtype::I32, &1i32.to_le_bytes()),
        (Dtype::I64, &1i64.to_le_bytes()),
        (Dtype::BF16, &half::bf16::ONE.to_le_bytes()),
        (Dtype::F16, &half::f16::ONE.to_le_bytes()),
        (Dtype::F32, &1f32.to_le_bytes()),
        (Dtype::F64, &1f64.to_le_bytes()),
    ] {
        let (_folder, path) =
            write(&[("tokens", Dtype::I64, &[2, 4], ids.clone()), ("loss_mask", dtype, &[2, 4], wide(one))]);
        assert_eq!(read_tokens(&path, 10, None).unwrap().batch.labels, [N, 7, 8, N, 2, N, N, N], "{dtype:?}");
    }
    let half: Vec<u8> = [0.5f32; 8].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let (_folder, path) = write(&[("tokens", Dtype::I64, &[2, 4], ids), ("loss_mask", Dtype::F32, &[2, 4], half)]);
    let error = read_tokens(&path, 10, None).unwrap_err().to_string();
    assert!(error.contains("\"loss_mask\" has a value that is neither 0 nor 1 at row 0, column 0"), "{error}");
    // With labels of Hugging Face it is still of the prediction.
    let labels: Tensor = ("labels", &[2, 4], &[5, 6, 7, 8, N, N, N, N]);
    let mask: Tensor = ("loss_mask", &[2, 4], &[1, 0, 1, 1, 1, 1, 1, 1]);
    assert_eq!(read(&[ROWS, labels, mask]).batch.labels, [6, N, 8, N, N, N, N, N]);
}

#[test]
fn what_is_not_known_and_what_is_outside_is_refused() {
    refused(
        &[ROWS, ("token_type_ids", &[2, 4], &[0; 8])],
        &["\"token_type_ids\" is not known", "known are tokens, input"],
    );
    refused(&[ROWS, ("input_ids", &[2, 4], &[0; 8])], &["both \"tokens\" and \"input_ids\""]);
    refused(&[("tokens", &[1, 4], &[1, 2, 10, 3])], &["\"tokens\" has 10 at row 0, column 2", "ids 0..10"]);
    refused(&[("input_ids", &[2, 2], &[1, 2, -1, 3])], &["\"input_ids\" has -1 at row 1, column 0"]);
    let outside: Tensor = ("labels", &[2, 4], &[N, N, N, N, N, 2, 40, N]);
    refused(&[ROWS, outside], &["\"labels\" has 40 at row 1, column 2", "ids 0..10", "-100"]);
    for name in ["labels", "loss_mask", "document_ids", "position_ids", "attention_mask"] {
        let shape = format!("tensor \"{name}\" has shape [8], expected [2, 4]");
        refused(&[ROWS, (name, &[8], &[0; 8])], &[&shape]);
        refused(&[ROWS, (name, &[2, 1, 4], &[0; 8])], &["shape [2, 1, 4]"]);
    }
    refused(&[ROWS, ("cu_seqlens", &[1, 2], &[0, 8])], &["shape [1, 2], expected [documents + 1]"]);
}

#[test]
fn says_what_is_wrong_with_a_file() {
    let data = [0u8; 48];
    for (name, dtype, shape, expected) in [
        ("ids", Dtype::I64, &[2, 3][..], "no tensor \"tokens\" or \"input_ids\"; found: ids"),
        ("tokens", Dtype::F64, &[2, 3][..], "type F64, expected I64"),
        ("tokens", Dtype::I64, &[6][..], "shape [6], expected [batch, seq]"),
        ("tokens", Dtype::I64, &[1, 2, 3][..], "shape [1, 2, 3]"),
    ] {
        let (_folder, path) = write(&[(name, dtype, shape, data.to_vec())]);
        let error = read_tokens(&path, 10, None).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(expected), "{error}");
    }
    let (_folder, path) = write(&[("tokens", Dtype::I64, &[0, 3], vec![])]);
    assert!(read_tokens(&path, 10, None).unwrap_err().to_string().contains("shape [0, 3]"));
    let (_folder, path) = write(&[("tokens", Dtype::I64, &[2, 3], data.to_vec())]);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = read_tokens(&path, 10, None).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("tokens.safetensors"), "truncated: {error}");
}
