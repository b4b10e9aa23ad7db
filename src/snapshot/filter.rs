//! Filters of [`super::Snapshotter::walk`], in containerd's words.
//!
//! `kind==committed,labels."a/b"==x` wants both; of several filters one is enough; a field without an operator wants it
//! to be there and not empty. Fields are `name`, `parent`, `kind` and `labels.<name>`.

use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{SnapshotKind, SnapshotRow};
use std::str::FromStr;

/// Any number of filters; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Matches everything.
    pub fn all() -> Self {
        Filters::default()
    }

    /// Reads filters.
    ///
    /// ```
    /// use transload::snapshot::Filters;
    /// assert!(Filters::parse(["kind==committed", r#"labels."a/b"!=x"#]).is_ok());
    /// assert!(Filters::parse(["size==3"]).is_err());
    /// ```
    pub fn parse<'a>(filters: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        filters.into_iter().map(str::parse).collect::<Result<_>>().map(Filters)
    }

    /// Whether one of them matches.
    pub fn matches(&self, snapshot: &SnapshotRow) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.0.iter().all(|s| s.matches(snapshot)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter(Vec<Selector>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
}

impl Selector {
    fn matches(&self, snapshot: &SnapshotRow) -> bool {
        let value = match &self.field {
            Field::Name => Some(snapshot.key.as_str()),
            Field::Parent => snapshot.parent.as_deref(),
            Field::Kind => Some(kind_name(snapshot.kind)),
            Field::Label(name) => snapshot.labels.get(name).map(String::as_str),
        };
        match &self.test {
            Test::Present => value.is_some_and(|value| !value.is_empty()),
            Test::Equal(wanted) => value.unwrap_or_default().eq_ignore_kind_case(wanted, &self.field),
            Test::Unequal(unwanted) => !value.unwrap_or_default().eq_ignore_kind_case(unwanted, &self.field),
        }
    }
}

/// Kinds are written `Committed` and `committed` by different clients.
trait EqualField {
    fn eq_ignore_kind_case(&self, other: &str, field: &Field) -> bool;
}

impl EqualField for str {
    fn eq_ignore_kind_case(&self, other: &str, field: &Field) -> bool {
        if *field == Field::Kind { self.eq_ignore_ascii_case(other) } else { self == other }
    }
}

/// The name of a kind, as filters and listings have it.
pub fn kind_name(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::View => "view",
        SnapshotKind::Active => "active",
        SnapshotKind::Committed => "committed",
    }
}

impl FromStr for Filter {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let mut reader = Reader { text, at: 0 };
        let mut selectors = Vec::new();
        loop {
            selectors.push(reader.selector().ok_or_else(|| invalid(text, reader.at))?);
            match reader.rest() {
                "" => return Ok(Filter(selectors)),
                rest if rest.starts_with(',') => reader.at += 1,
                _ => return Err(invalid(text, reader.at)),
            }
        }
    }
}

fn invalid(text: &str, at: usize) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the filter {text:?} is not understood at byte {at}"))
        .with_hint("a filter reads kind==committed,parent==NAME,labels.\"NAME\"==VALUE")
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn selector(&mut self) -> Option<Selector> {
        let mut path = vec![self.word(|c| c.is_alphanumeric() || c == '_' || c == '-')?];
        while self.take(".") {
            path.push(self.word(|c| c.is_alphanumeric() || "_-/".contains(c))?);
        }
        let field = match (path[0].as_str(), &path[1..]) {
            ("name", []) => Field::Name,
            ("parent", []) => Field::Parent,
            ("kind", []) => Field::Kind,
            ("labels", [_, ..]) => Field::Label(path[1..].join(".")),
            _ => return None,
        };
        let test = if self.take("==") {
            Test::Equal(self.word(|c| c != ',')?)
        } else if self.take("!=") {
            Test::Unequal(self.word(|c| c != ',')?)
        } else {
            Test::Present
        };
        Some(Selector { field, test })
    }

    /// A quoted string, or the longest run of allowed characters.
    fn word(&mut self, allowed: impl Fn(char) -> bool) -> Option<String> {
        if self.take("\"") {
            return self.quoted();
        }
        let rest = self.rest();
        let length = rest.find(|c| !allowed(c)).unwrap_or(rest.len());
        self.at += length;
        Some(rest[..length].to_string()).filter(|word| !word.is_empty())
    }

    fn quoted(&mut self) -> Option<String> {
        let mut word = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((index, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += index + 1;
                    return Some(word);
                }
                '\\' => word.push(chars.next()?.1),
                c => word.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Usage;

    fn snapshot() -> SnapshotRow {
        SnapshotRow {
            id: 1,
            key: "n".into(),
            kind: SnapshotKind::Committed,
            parent: Some("sha256:p".into()),
            tree: None,
            heal: false,
            usage: Usage::default(),
            labels: [("a/b".to_string(), "x,y".to_string()), ("e".into(), String::new())].into(),
            created_ms: 0,
            updated_ms: 0,
            remove_ms: None,
        }
    }

    #[test]
    fn comma_is_and_several_are_or() {
        for (filters, wanted) in [
            (&[][..], true),
            (&["kind==committed"], true),
            (&["kind==Committed"], true),
            (&["kind==active"], false),
            (&["kind!=active,name==n"], true),
            (&["kind==committed,name==m"], false),
            (&["name==m", "kind==committed"], true),
            (&["parent==sha256:p"], true),
            (&["parent"], true),
            (&[r#"labels."a/b"=="x,y""#], true),
            (&[r#"labels."a/b"==x"#], false),
            (&["labels.a/b"], true),
            (&["labels.e"], false),
            (&["labels.absent"], false),
            (&["labels.absent!=x"], true),
        ] {
            let filters = Filters::parse(filters.iter().copied()).expect("well formed");
            assert_eq!(filters.matches(&snapshot()), wanted, "{filters:?}");
        }
        for bad in
            ["", "size==3", "kind==", "kind~=x", "labels", "labels.", "kind==a,", r#"name=="x"#, "name=x"]
        {
            assert!(Filters::parse([bad]).is_err(), "{bad}");
        }
    }
}
