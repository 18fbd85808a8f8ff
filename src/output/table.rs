//! One typed table: its columns give the text table, the JSON and the CSV alike.

use std::fmt::Write as _;
use std::io;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::{Voice, data};
use crate::machine::text::printable;

/// A column of a table of `T`.
#[derive(Debug)]
pub struct Column<T> {
    /// The key in JSON, `--columns`, `--filter` and `--sort`: `snake_case`. Upper-cased it is the header.
    pub key: &'static str,
    /// Shown without `--columns`.
    pub shown: bool,
    /// The value as JSON has it.
    pub value: fn(&T) -> Value,
    /// The value as the table has it, where that differs from the JSON's own text.
    pub text: Option<fn(&T) -> String>,
}

impl<T> Column<T> {
    fn cell(&self, row: &T) -> String {
        self.text
            .map_or_else(|| plain(&(self.value)(row)), |text| printable(&text(row)))
    }

    fn header(&self) -> String {
        self.key.to_uppercase().replace('_', " ")
    }
}

/// The options that every table takes.
#[derive(Args, Clone, Debug, Default)]
pub struct TableArgs {
    /// Columns to show, in this order
    #[arg(long, value_name = "COL,…", value_delimiter = ',', help_heading = "Output")]
    pub columns: Vec<String>,
    /// Only rows whose column matches; `*` and `?` match any text, and `!=` turns it round
    #[arg(long, value_name = "COL=PATTERN", help_heading = "Output")]
    pub filter: Vec<String>,
    /// Sort by this column; `-COL` for descending
    #[arg(long, value_name = "COL", allow_hyphen_values = true, help_heading = "Output")]
    pub sort: Option<String>,
    /// Output format; `--json` is short for `--format json`, and wins
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    pub format: Option<Format>,
    /// Leave out the header and the line that counts the rows
    #[arg(long, help_heading = "Output")]
    pub no_legend: bool,
}

/// How a table comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    Table,
    /// An array of objects
    Json,
    /// RFC 4180, with a header
    Csv,
}

/// A column, filter or sort key that the table does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// There is no such column.
    #[error("no column '{name}': there are {known}")]
    NoColumn {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not of the form `COL=PATTERN`.
    #[error("filter '{0}' is not of the form COLUMN=PATTERN")]
    BadFilter(String),
}

/// A request checked against a table's columns.
#[derive(Debug)]
pub struct View<'a, T> {
    columns: Vec<&'a Column<T>>,
    filters: Vec<(&'a Column<T>, glob::Pattern, bool)>,
    sort: Option<(&'a Column<T>, bool)>,
    format: Format,
    legend: bool,
}

impl<'a, T> View<'a, T> {
    /// Checks `args` against `columns`. In JSON all columns are shown unless some are asked for.
    pub fn new(columns: &'a [Column<T>], args: &TableArgs, voice: Voice) -> Result<Self, TableError> {
        let find = |name: &str| {
            let wanted = name.to_lowercase().replace([' ', '-'], "_");
            columns
                .iter()
                .find(|column| column.key == wanted)
                .ok_or_else(|| TableError::NoColumn {
                    name: name.to_owned(),
                    known: columns.iter().map(|c| c.key).collect::<Vec<_>>().join(", "),
                })
        };
        let format = if voice.json { Some(Format::Json) } else { args.format };
        let format = format.unwrap_or(Format::Table);
        let mut filters = Vec::new();
        for filter in &args.filter {
            let bad = || TableError::BadFilter(filter.clone());
            let (name, pattern) = filter.split_once('=').ok_or_else(bad)?;
            let (name, wanted) = name.strip_suffix('!').map_or((name, true), |name| (name, false));
            filters.push((find(name)?, glob::Pattern::new(pattern).map_err(|_| bad())?, wanted));
        }
        let sort = match args.sort.as_deref() {
            None => None,
            Some(name) => match name.strip_prefix('-') {
                Some(name) => Some((find(name)?, true)),
                None => Some((find(name)?, false)),
            },
        };
        let chosen = if args.columns.is_empty() {
            columns
                .iter()
                .filter(|column| column.shown || format == Format::Json)
                .collect()
        } else {
            args.columns.iter().map(|name| find(name)).collect::<Result<_, _>>()?
        };
        Ok(Self {
            columns: chosen,
            filters,
            sort,
            format,
            legend: !args.no_legend,
        })
    }

    /// Whether a column is needed: shown, filtered on, or sorted by. What is not needed is not fetched.
    #[must_use]
    pub fn needs(&self, key: &str) -> bool {
        self.columns.iter().any(|c| c.key == key)
            || self.filters.iter().any(|(c, ..)| c.key == key)
            || self.sort.is_some_and(|(c, _)| c.key == key)
    }

    /// The rows that the filters leave, in order.
    #[must_use]
    pub fn arrange(&self, mut rows: Vec<T>) -> Vec<T> {
        for (column, pattern, wanted) in &self.filters {
            // As tables show it, or as JSON and CSV do: "no" and "false".
            let matches = |row: &T| pattern.matches(&column.cell(row)) || pattern.matches(&raw(&(column.value)(row)));
            rows.retain(|row| matches(row) == *wanted);
        }
        if let Some((column, descending)) = self.sort {
            rows.sort_by(|a, b| {
                let (a, b) = ((column.value)(a), (column.value)(b));
                let order = compare(&a, &b);
                // What has no number stands behind what has one, either way.
                let turned = descending && a.is_number() == b.is_number();
                if turned { order.reverse() } else { order }
            });
        }
        rows
    }

    /// The headers of what is shown.
    #[must_use]
    pub fn headers(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.header()).collect()
    }

    /// What is shown of a row.
    #[must_use]
    pub fn cells(&self, row: &T) -> Vec<String> {
        self.columns.iter().map(|column| column.cell(row)).collect()
    }

    /// Prints the rows; `noun` is what the last line counts: "machine" gives "2 machines listed."
    pub fn print(&self, rows: Vec<T>, noun: &str, voice: Voice) -> io::Result<()> {
        let rows = self.arrange(rows);
        match self.format {
            Format::Json => voice.json(&rows.iter().map(|row| self.object(row)).collect::<Vec<_>>()),
            Format::Csv => data(&self.csv(&rows)),
            Format::Table => data(&self.table(&rows, noun)),
        }
    }

    fn object(&self, row: &T) -> Map<String, Value> {
        self.columns
            .iter()
            .map(|column| (column.key.to_owned(), (column.value)(row)))
            .collect()
    }

    fn csv(&self, rows: &[T]) -> String {
        let field = |text: &str| {
            if text.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.to_owned()
            }
        };
        let mut text = String::new();
        if self.legend {
            let headers: Vec<_> = self.columns.iter().map(|c| c.key.to_owned()).collect();
            text.push_str(&headers.join(","));
            text.push_str("\r\n");
        }
        for row in rows {
            let cells: Vec<_> = self
                .columns
                .iter()
                .map(|c| field(&printable(&raw(&(c.value)(row)))))
                .collect();
            text.push_str(&cells.join(","));
            text.push_str("\r\n");
        }
        text
    }

    fn table(&self, rows: &[T], noun: &str) -> String {
        let mut text = String::new();
        if !rows.is_empty() {
            let mut table = comfy_table::Table::new();
            *table.style_mut() = comfy_table::presets::NOTHING;
            // Lines are never wrapped: what reads a pipe wants one row a line, and a terminal wraps by itself.
            table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
            if self.legend {
                table.set_header(self.columns.iter().map(|column| column.header()));
            }
            for row in rows {
                table.add_row(self.columns.iter().map(|column| column.cell(row)));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 1));
            }
            for line in table.lines() {
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
        if self.legend {
            let plural = if rows.len() == 1 { "" } else { "s" };
            let number = if rows.is_empty() {
                "No".to_owned()
            } else {
                rows.len().to_string()
            };
            let gap = if rows.is_empty() { "" } else { "\n" };
            let _ = writeln!(
                text,
                "{gap}{number} {noun}{plural}{}",
                if rows.is_empty() { "." } else { " listed." }
            );
        }
        text
    }
}

/// A JSON value as a table shows it: `-` for null and empty, yes/no, lists with commas.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        other => raw(other),
    };
    if text.is_empty() {
        "-".to_owned()
    } else {
        printable(&text)
    }
}

/// A JSON value as CSV has it: null is empty, lists are joined by spaces.
fn raw(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(raw).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        // Numbers before what has none.
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => raw(a).cmp(&raw(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(&str, Option<u64>)>] = &[
        Column {
            key: "name",
            shown: true,
            value: |r| Value::from(r.0),
            text: None,
        },
        Column {
            key: "used_by",
            shown: true,
            value: |r| Value::from(r.1),
            text: None,
        },
    ];

    fn view(args: &TableArgs) -> Result<View<'static, (&'static str, Option<u64>)>, TableError> {
        View::new(COLUMNS, args, Voice::default())
    }

    #[test]
    fn looks_like_machinectl() {
        let view = view(&TableArgs::default()).unwrap();
        assert_eq!(
            view.table(&[("web", Some(10)), ("a\x1bb", None)], "machine"),
            "NAME    USED BY\nweb     10\na\\u{1b}b -\n\n2 machines listed.\n"
                .replace("NAME    ", "NAME     ")
                .replace("web     ", "web      ")
        );
        assert_eq!(view.table(&[], "machine"), "No machines.\n");
    }

    #[test]
    fn what_has_no_number_stands_behind() {
        let sorted = |sort: &str| {
            let sort = Some(sort.to_owned());
            let view = view(&TableArgs {
                sort,
                ..TableArgs::default()
            });
            let rows = view.unwrap().arrange(vec![("a", None), ("b", Some(1)), ("c", Some(2))]);
            rows.iter().map(|row| row.0).collect::<String>()
        };
        assert_eq!(sorted("used_by"), "bca");
        assert_eq!(sorted("-used_by"), "cba");
        assert_eq!(sorted("-name"), "cba");
    }

    #[test]
    fn unknown_columns_name_the_known() {
        let error = view(&TableArgs {
            columns: vec!["nmae".into()],
            ..TableArgs::default()
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "no column 'nmae': there are name, used_by");
        assert!(
            view(&TableArgs {
                filter: vec!["name".into()],
                ..TableArgs::default()
            })
            .is_err()
        );
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let view = view(&TableArgs::default()).unwrap();
        assert_eq!(view.csv(&[("a,\"b", None)]), "name,used_by\r\n\"a,\"\"b\",\r\n");
    }

    #[test]
    fn only_needed_columns_are_needed() {
        let args = TableArgs {
            columns: vec!["NAME".into()],
            sort: Some("-used_by".into()),
            ..TableArgs::default()
        };
        assert!(view(&args).unwrap().needs("used_by"));
        let args = TableArgs {
            columns: vec!["name".into()],
            ..TableArgs::default()
        };
        assert!(!view(&args).unwrap().needs("used_by"));
    }
}
