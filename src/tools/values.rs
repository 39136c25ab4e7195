//! The answers of `CONTROL stats --values`: lines `KEY=VALUE`, as docs/administration.md says.
//!
//! Columns are found by their names, and what is unknown is passed over, so a newer server can say more.

use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;

/// The form that this program reads.
const FORMAT: u64 = 1;

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// What the image calls itself.
    pub image: String,
    /// Every key with a number.
    pub numbers: BTreeMap<String, u64>,
    /// How many requests took less than so many microseconds; `None` for the last, which has no bound.
    pub buckets: Vec<(Option<u64>, u64)>,
    /// The domains.
    pub rows: Vec<Row>,
    /// The domid at which the next page begins.
    pub next: Option<u16>,
}

/// What is said of one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The domain.
    pub domid: u16,
    /// Why it is not served, or nothing.
    pub state: String,
    /// The cells that are not empty, by the names of their columns.
    pub numbers: BTreeMap<String, u64>,
}

impl Row {
    /// A number; 0 where the cell is empty.
    #[must_use]
    pub fn number(&self, column: &str) -> u64 {
        self.numbers.get(column).copied().unwrap_or(0)
    }
}

impl Page {
    /// A number; 0 where there is none.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.numbers.get(key).copied().unwrap_or(0)
    }

    /// Takes an answer apart.
    ///
    /// # Errors
    /// It is not in this form, or in a newer one.
    pub fn parse(answer: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(answer);
        let mut page = Self::default();
        let mut columns = Vec::new();
        for line in text.trim_end_matches(['\0', '\n']).lines() {
            let (key, value) = line.split_once('=').context("a line without a value")?;
            match key {
                "image" => page.image = crate::text::printable(value.as_bytes()),
                "columns" => columns = value.split(',').collect(),
                "request_us" => page.buckets = buckets(value),
                "row" => page.rows.push(row(&columns, value)?),
                "next" => page.next = Some(value.parse().context("next")?),
                _ => {
                    if let Ok(number) = value.parse() {
                        page.numbers.insert(key.to_owned(), number);
                    }
                }
            }
        }
        match page.numbers.get("format") {
            Some(&FORMAT) => Ok(page),
            Some(other) => {
                bail!("the figures are in form {other}, and this program knows {FORMAT}")
            }
            None => bail!("the answer has no figures"),
        }
    }
}

fn row(columns: &[&str], value: &str) -> Result<Row> {
    let mut row = Row::default();
    let mut has_domid = false;
    for (column, cell) in columns.iter().zip(value.split(',')) {
        match *column {
            "domid" => {
                row.domid = cell.parse().context("a row without a domid")?;
                has_domid = true;
            }
            "state" => row.state = crate::text::printable(cell.as_bytes()),
            _ if cell.is_empty() => {}
            _ => {
                row.numbers.insert((*column).to_owned(), cell.parse().context("a cell")?);
            }
        }
    }
    if has_domid { Ok(row) } else { bail!("a row without a domid") }
}

fn buckets(value: &str) -> Vec<(Option<u64>, u64)> {
    let each = value.split(',').filter_map(|bucket| bucket.split_once(':'));
    each.filter_map(|(bound, count)| Some((bound.parse().ok(), count.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn columns_are_found_by_name_and_news_are_passed_over() {
        let text = b"format=1\nimage=[x]\nnews=some words\nrequest_us=1:5,2:0,-:7\n\
                     columns=state,new,domid,requests\nrow=,9,7,3\nrow=rate,,8\nnext=9\n\0";
        let page = Page::parse(text).unwrap();
        assert_eq!(page.buckets, [(Some(1), 5), (Some(2), 0), (None, 7)]);
        assert_eq!(page.next, Some(9));
        let [seven, eight] = page.rows.as_slice() else { panic!("{page:?}") };
        assert_eq!((seven.domid, seven.number("requests"), seven.state.as_str()), (7, 3, ""));
        assert_eq!((eight.domid, eight.number("requests"), eight.state.as_str()), (8, 0, "rate"));
    }

    #[test]
    fn what_is_no_such_answer_is_an_error() {
        for text in
            ["", "OK\0", "format=2\n\0", "format=1\ncolumns=domid\nrow=x\n", "format=1\nrow=1\n"]
        {
            assert!(Page::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
