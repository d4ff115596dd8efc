//! Parts of lists: `limit` and `cursor` of a query, and the cursor of what comes next (contract §1).

use data_encoding::BASE64URL_NOPAD;
use garde::Validate;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    fields::{FieldErrors, Text, field_error, present},
    model::{Listed, Page},
    problem::Problem,
};

/// The query of a list.
#[derive(Debug, Default, Deserialize, Validate)]
pub struct PageQuery {
    #[serde(default, deserialize_with = "present")]
    #[garde(skip)]
    limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(skip)]
    cursor: Option<Text>,
}

/// How many a list shows when it is not asked for less or more.
pub const USUAL: i64 = 50;
/// How many it shows at most.
pub const MOST: i64 = 100;

/// A list as it is shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown<T> {
    /// Of the whole list.
    pub count: i64,
    /// This part of it.
    pub results: Vec<T>,
    /// Where the next part begins, if there is one.
    pub next: Option<String>,
}

/// What asking for an impossible part is answered.
#[derive(Debug, thiserror::Error)]
#[error("no such part of the list")]
pub struct NoSuchPage(FieldErrors);

impl From<NoSuchPage> for Problem {
    fn from(error: NoSuchPage) -> Self {
        Self::invalid(error.0)
    }
}

impl PageQuery {
    /// The part that is asked for. One more is read than is shown, to know whether the list goes on.
    ///
    /// # Errors
    /// Sentences for a `limit` out of bounds and a `cursor` that is none of ours.
    pub fn page(&self) -> Result<Page, NoSuchPage> {
        let limit = match &self.limit {
            None => USUAL,
            Some(text) => text.0.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
                NoSuchPage(field_error("limit", format!("A valid integer between 1 and {MOST} is required.")))
            })?,
        };
        let after = match &self.cursor {
            None => None,
            Some(text) => {
                Some(read_cursor(&text.0).ok_or_else(|| NoSuchPage(field_error("cursor", "Invalid cursor.")))?)
            }
        };
        Ok(Page { limit: limit + 1, after })
    }
}

impl<T> Shown<T> {
    /// Of what was read for `page`.
    pub fn new(listed: Listed<T>, page: Page, place: impl Fn(&T) -> (OffsetDateTime, Uuid)) -> Self {
        let Listed { count, items: mut results } = listed;
        let shown = usize::try_from(page.limit - 1).unwrap_or_default();
        let goes_on = results.len() > shown;
        results.truncate(shown);
        let next = results.last().filter(|_| goes_on).map(|last| cursor(place(last)));
        Self { count, results, next }
    }
}

fn cursor((at, id): (OffsetDateTime, Uuid)) -> String {
    let micros = i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or_default();
    BASE64URL_NOPAD.encode(&[micros.to_be_bytes().as_slice(), id.as_bytes()].concat())
}

fn read_cursor(text: &str) -> Option<(OffsetDateTime, Uuid)> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    let (micros, id) = bytes.split_first_chunk::<8>()?;
    // Of a time that either database can hold: nothing of ours is older than 1970.
    let micros = Some(i64::from_be_bytes(*micros)).filter(|micros| *micros >= 0)?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()?;
    Some((at, Uuid::from_slice(id).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::memory::request;
    use serde_json::json;

    fn page(query: serde_json::Value) -> Option<Page> {
        request::<PageQuery>(query).page().ok()
    }

    #[test]
    fn limits_out_of_bounds_and_strange_cursors_are_refused() {
        assert_eq!(page(json!({})), Some(Page { limit: USUAL + 1, after: None }));
        assert_eq!(page(json!({ "limit": "100" })).map(|page| page.limit), Some(101));
        for limit in ["0", "-1", "101", "9223372036854775808", "1.5", "", "x"] {
            assert_eq!(page(json!({ "limit": limit })), None, "{limit}");
        }
        let before_1970 = BASE64URL_NOPAD.encode(&[[0x80].as_slice(), &[0; 23]].concat());
        let too_late = BASE64URL_NOPAD.encode(&[[0x7f].as_slice(), &[0xff; 23]].concat());
        for cursor in ["", "x", "AAAA", &"A".repeat(33), "' OR 1=1 --", &before_1970, &too_late] {
            assert_eq!(page(json!({ "cursor": cursor })), None, "{cursor}");
        }
    }

    #[test]
    fn a_cursor_leads_to_what_comes_after_the_last_shown() {
        let at = |n: i64| (OffsetDateTime::from_unix_timestamp(n).unwrap(), Uuid::from_u128(7));
        let query = page(json!({ "limit": "2" })).unwrap();
        let shown = Shown::new(Listed { count: 3, items: vec![9, 8, 7] }, query, |n| at(*n));
        assert_eq!(shown.results, [9, 8]);
        let next = page(json!({ "cursor": shown.next.unwrap() })).unwrap();
        assert_eq!(next.after, Some(at(8)));
        let last = Shown::new(Listed { count: 3, items: vec![7] }, query, |n| at(*n));
        assert_eq!(last.next, None);
    }
}
