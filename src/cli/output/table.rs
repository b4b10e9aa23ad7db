//! Aligned columns for people.

use super::{Style, printable};

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
}

impl Table {
    pub fn new(headings: &[(&'static str, Align)]) -> Self {
        Table { headings: headings.to_vec(), text: String::new(), ends: Vec::new() }
    }

    /// One cell for each heading; missing ones are empty.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let row_end = self.ends.len() + self.headings.len();
        for cell in cells {
            self.text.push_str(&printable(cell.as_ref()));
            self.ends.push(self.text.len());
        }
        self.ends.resize(row_end, self.text.len());
    }

    /// The table as text, each line ended, no blanks at the ends of lines.
    pub fn render(&self, style: &Style) -> String {
        let columns = self.headings.len();
        let mut widths: Vec<usize> = self.headings.iter().map(|(name, _)| name.len()).collect();
        for (at, cell) in self.cells().enumerate() {
            widths[at % columns] = widths[at % columns].max(cell.chars().count());
        }
        let (mut heading, mut text) = (String::new(), String::new());
        self.line(self.headings.iter().map(|(name, _)| *name), &widths, &mut heading);
        text.push_str(&style.heading(&heading));
        text.push('\n');
        let mut cells = self.cells();
        for _ in 0..self.ends.len() / columns {
            self.line(cells.by_ref().take(columns), &widths, &mut text);
            text.push('\n');
        }
        text
    }

    fn cells(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(&0).chain(&self.ends);
        begins.zip(&self.ends).map(|(begin, end)| &self.text[*begin..*end])
    }

    fn line<'a>(&self, cells: impl Iterator<Item = &'a str>, widths: &[usize], text: &mut String) {
        let begin = text.len();
        for (column, (cell, width)) in cells.zip(widths).enumerate() {
            let blanks = std::iter::repeat_n(' ', width - cell.chars().count());
            text.push_str(if column == 0 { "" } else { "  " });
            match self.headings[column].1 {
                Align::Left => {
                    text.push_str(cell);
                    text.extend(blanks);
                }
                Align::Right => {
                    text.extend(blanks);
                    text.push_str(cell);
                }
            }
        }
        text.truncate(begin + text[begin..].trim_end().len());
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
    }
}
