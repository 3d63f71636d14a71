//! Tables that fit the terminal.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// Columns that a text is broken to at the narrowest.
const NARROW: u16 = 20;

/// A table in as many columns as results have; the first `labels` columns are text, the others numbers.
pub fn table(header: &[&str], labels: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    fitted(header, labels, &rows, super::width())
}

/// The table in at most `width` columns: where it is too wide, texts are broken first, to a third of that or a few
/// words; then cells move below each other, header and rows alike, in as few storeys as fit.
fn fitted(header: &[&str], labels: usize, rows: &[Vec<String>], width: Option<usize>) -> String {
    let Some(width) = width else { return drawn(header, labels, rows, 1, None) };
    let fits = |table: &String| table.lines().all(|line| line.chars().count() <= width);
    let most = header.len().max(1);
    // Padding counts.
    let texts = [None, u16::try_from(width / 3 + 2).ok(), Some(NARROW + 2)];
    let mut tables = (1..=most).flat_map(|storeys| texts.map(|texts| (storeys, texts)));
    let table = tables.find_map(|(storeys, texts)| Some(drawn(header, labels, rows, storeys, texts)).filter(fits));
    // Nothing fits a terminal of a few columns.
    table.unwrap_or_else(|| drawn(header, labels, rows, most, None))
}

/// The table with `storeys` cells below each other.
fn drawn(header: &[&str], labels: usize, rows: &[Vec<String>], storeys: usize, texts: Option<u16>) -> String {
    let stacked = |cells: &[&str]| -> Vec<String> {
        let (text, numbers) = cells.split_at(labels.min(cells.len()));
        [text, numbers].into_iter().flat_map(|cells| stack(cells, storeys)).collect()
    };
    let mut table = Table::new();
    table.load_preset(if storeys == 1 { presets::UTF8_FULL_CONDENSED } else { presets::UTF8_FULL });
    table.set_content_arrangement(ContentArrangement::Disabled).set_header(stacked(header));
    table.add_rows(rows.iter().map(|row| stacked(&row.iter().map(String::as_str).collect::<Vec<_>>())));
    let labels = labels.div_ceil(storeys);
    for (index, column) in table.column_iter_mut().enumerate() {
        match (index < labels, texts) {
            (true, Some(width)) => {
                column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
            }
            (true, None) => {}
            (false, _) => column.set_cell_alignment(CellAlignment::Right),
        }
    }
    table.to_string()
}

/// The cells in rows of equal length, one below the other: a cell per column.
fn stack(cells: &[&str], storeys: usize) -> Vec<String> {
    let columns = cells.len().div_ceil(storeys);
    let column = |index: usize| {
        let cells = (0..storeys)
            .map(|storey| if columns == 0 { "" } else { cells.get(storey * columns + index).copied().unwrap_or("") });
        cells.collect::<Vec<_>>().join("\n").trim_end_matches('\n').to_string()
    };
    (0..columns).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widest(table: &str) -> usize {
        table.lines().map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn tables_fit_the_terminal_and_keep_every_cell() {
        let header = ["strategy", "order", "loss", "gradient", "bytes", "balance", "milliseconds"];
        let row = [
            "ring-ulysses",
            "contiguous, contiguous, contiguous and more",
            "1.5",
            "2.5e-7",
            "64.0 KiB",
            "1.00",
            "12.75",
        ];
        let rows = [row.map(str::to_string).to_vec()];
        let whole = fitted(&header, 2, &rows, None);
        assert!(widest(&whole) > 110 && whole.lines().count() == 5);
        for width in [120, 80, 60, 40] {
            let table = fitted(&header, 2, &rows, Some(width));
            assert!(widest(&table) <= width, "{width}:\n{table}");
            let cells = header.iter().chain(&row).filter(|cell| cell.len() < 20);
            assert!(cells.clone().all(|cell| table.contains(cell)), "{width}:\n{table}");
        }
        assert!(fitted(&header, 2, &rows, Some(3)).contains("12.75"), "what does not fit is printed all the same");
    }

    #[test]
    fn cells_are_stacked_in_the_order_of_reading() {
        assert_eq!(stack(&["a", "b", "c", "d", "e"], 2), ["a\nd", "b\ne", "c"]);
        assert_eq!(stack(&["a", "b"], 3), ["a\nb"]);
        assert!(stack(&[], 2).is_empty());
    }
}
