//! Aligned columns for people.

use super::{Style, printable};
use std::cmp::Ordering;

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows under headings. Cells are made printable here, so that callers cannot forget it.
pub struct Table {
    headings: Vec<(&'static str, Align)>,
    /// All cells one after another: a list of images has tens of thousands.
    text: String,
    /// Where in `text` each cell ends; a row has as many as there are headings.
    ends: Vec<usize>,
    /// The rows in the order in which they are shown.
    order: Vec<usize>,
}

impl Table {
    pub fn new(headings: &[(&'static str, Align)]) -> Self {
        Table { headings: headings.to_vec(), text: String::new(), ends: Vec::new(), order: Vec::new() }
    }

    /// One cell for each heading; missing ones are empty.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let row_end = self.ends.len() + self.headings.len();
        self.order.push(self.order.len());
        for cell in cells {
            self.text.push_str(&printable(cell.as_ref()));
            self.ends.push(self.text.len());
        }
        self.ends.resize(row_end, self.text.len());
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Shows the rows in the order that `compare` gives them; equal ones stay as they came.
    pub fn sort_by(&mut self, compare: impl Fn(Row<'_>, Row<'_>) -> Ordering) {
        let mut order = std::mem::take(&mut self.order);
        order.sort_by(|a, b| compare(self.at(*a), self.at(*b)));
        self.order = order;
    }

    /// The table as text, each line ended, no blanks at the ends of lines.
    pub fn render(&self, style: &Style) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|(name, _)| name.len()).collect();
        for row in &self.order {
            for (cell, width) in self.at(*row).cells().zip(&mut widths) {
                *width = cell.chars().count().max(*width);
            }
        }
        let (mut heading, mut text) = (String::new(), String::new());
        self.line(self.headings.iter().map(|(name, _)| *name), &widths, &mut heading);
        text.push_str(&style.heading(&heading));
        text.push('\n');
        for row in &self.order {
            self.line(self.at(*row).cells(), &widths, &mut text);
            text.push('\n');
        }
        text
    }

    fn at(&self, row: usize) -> Row<'_> {
        Row { table: self, first: row * self.headings.len() }
    }

    fn line<'a>(&self, cells: impl Iterator<Item = &'a str>, widths: &[usize], text: &mut String) {
        let begin = text.len();
        let blanks = " ".repeat(widths.iter().copied().max().unwrap_or_default());
        for (column, (cell, width)) in cells.zip(widths).enumerate() {
            let blanks = &blanks[..width - cell.chars().count()];
            text.push_str(if column == 0 { "" } else { "  " });
            match self.headings[column].1 {
                Align::Left => {
                    text.push_str(cell);
                    text.push_str(blanks);
                }
                Align::Right => {
                    text.push_str(blanks);
                    text.push_str(cell);
                }
            }
        }
        text.truncate(begin + text[begin..].trim_end().len());
    }
}

/// One row of a [`Table`].
#[derive(Clone, Copy)]
pub struct Row<'a> {
    table: &'a Table,
    /// The number of its first cell.
    first: usize,
}

impl<'a> Row<'a> {
    /// The cell under the heading of that number, as it is shown.
    pub fn cell(self, column: usize) -> &'a str {
        let Table { text, ends, .. } = self.table;
        let at = self.first + column;
        let begin = at.checked_sub(1).map_or(0, |before| ends[before]);
        &text[begin..ends[at]]
    }

    fn cells(self) -> impl Iterator<Item = &'a str> {
        (0..self.table.headings.len()).map(move |column| self.cell(column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::ColorMode;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("X", Align::Left)]);
        table.row(["a".to_string(), "12.3 MB".to_string(), String::new()]);
        table.row(["long\x1bname".to_string(), "1 B".to_string(), "y".to_string()]);
        let text = table.render(&Style::new(ColorMode::Never, false));
        assert_eq!(text, "NAME             SIZE  X\na             12.3 MB\nlong\\x1bname      1 B  y\n");
        table.sort_by(|a, b| b.cell(0).cmp(a.cell(0)));
        let text = table.render(&Style::new(ColorMode::Never, false));
        assert_eq!(text, "NAME             SIZE  X\nlong\\x1bname      1 B  y\na             12.3 MB\n");
    }
}
