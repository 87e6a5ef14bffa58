//! Columns that line up.

/// Rows of cells under a head; numbers to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let columns = head.len();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let right: Vec<bool> = (0..columns)
        .map(|column| {
            !rows.is_empty()
                && rows.iter().all(|row| {
                    let digits = |c: char| c.is_ascii_digit() || c == ',' || c == '-';
                    row[column].chars().all(digits)
                })
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let width = widths[column];
            if column > 0 {
                line.push_str("  ");
            }
            match right[column] {
                true => line.push_str(&format!("{cell:>width$}")),
                false => line.push_str(&format!("{cell:<width$}")),
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["längere".to_owned(), "1,000".to_owned()]];
        assert_eq!(table(&["name", "bytes"], &rows), "name     bytes\na            1\nlängere  1,000\n");
    }
}
