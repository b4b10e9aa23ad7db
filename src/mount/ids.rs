//! Mappings of user and group numbers: who owns what is seen differently than it is stored.
//!
//! A range says which numbers of the image (`inside`) are shown as which numbers of the host (`outside`), as
//! `/proc/<pid>/uid_map` has it. A number in no range has no owner outside, so a mapping has to fit the tree it is for.

use crate::error::{Error, ErrorKind, Result};
use std::str::FromStr;

/// The kernel takes this many lines in `uid_map` (Linux 4.15; five before).
const MAX_RANGES: usize = 340;

/// A range of numbers: `inside:outside:count`.
///
/// ```
/// use transload::mount::IdMapping;
/// let range: IdMapping = "0:100000:65536".parse()?;
/// assert_eq!((range.inside, range.outside, range.count), (0, 100_000, 65_536));
/// # Ok::<(), transload::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdMapping {
    /// The first number of the image.
    pub inside: u32,
    /// The number of the host that it is shown as.
    pub outside: u32,
    /// How many numbers from there on.
    pub count: u32,
}

impl IdMapping {
    fn holds(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.inside)?;
        (offset < self.count).then(|| self.outside + offset)
    }

    fn check(&self) -> Result<()> {
        // The last number of all means "nobody" to system calls.
        let fits = |first: u32| first.checked_add(self.count).is_some();
        match self.count > 0 && fits(self.inside) && fits(self.outside) {
            true => Ok(()),
            false => Err(wrong(format!("{self} is not a range of numbers"))),
        }
    }
}

impl FromStr for IdMapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([inside, outside, count]) => {
                let range = IdMapping { inside: *inside, outside: *outside, count: *count };
                range.check().map(|()| range)
            }
            _ => Err(wrong(format!("{text:?} is not FIRST-IN-IMAGE:FIRST-ON-HOST:COUNT"))),
        }
    }
}

impl std::fmt::Display for IdMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message).with_hint("write a range as 0:100000:65536")
}

/// How users and groups are shown. Valid by construction: no number stands for two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdMaps {
    users: Vec<IdMapping>,
    groups: Vec<IdMapping>,
}

impl IdMaps {
    /// A mapping of these ranges. Where only one side is given, it counts for both, as with other tools.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] without any range, with more than the kernel takes, or where two of them overlap.
    pub fn new(users: &[IdMapping], groups: &[IdMapping]) -> Result<Self> {
        let users = checked(if users.is_empty() { groups } else { users })?;
        let groups = if groups.is_empty() { users.clone() } else { checked(groups)? };
        Ok(IdMaps { users, groups })
    }

    /// What a user of the image is shown as; `None` if the mapping leaves it out.
    pub fn user(&self, id: u32) -> Option<u32> {
        self.users.iter().find_map(|range| range.holds(id))
    }

    /// The same for a group.
    pub fn group(&self, id: u32) -> Option<u32> {
        self.groups.iter().find_map(|range| range.holds(id))
    }

    /// The ranges of the users, in order.
    pub fn users(&self) -> &[IdMapping] {
        &self.users
    }

    /// The ranges of the groups, in order.
    pub fn groups(&self) -> &[IdMapping] {
        &self.groups
    }
}

impl std::fmt::Display for IdMaps {
    /// Equal mappings have equal texts, however they were written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text =
            |ranges: &[IdMapping]| ranges.iter().map(|range| range.to_string()).collect::<Vec<_>>().join(",");
        write!(f, "u{};g{}", text(&self.users), text(&self.groups))
    }
}

fn checked(ranges: &[IdMapping]) -> Result<Vec<IdMapping>> {
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(wrong(format!("a mapping has 1 to {MAX_RANGES} ranges, not {}", ranges.len())));
    }
    ranges.iter().try_for_each(IdMapping::check)?;
    let mut sorted = ranges.to_vec();
    for first in [|range: &IdMapping| range.outside, |range: &IdMapping| range.inside] {
        sorted.sort_unstable_by_key(first);
        let overlap = sorted.windows(2).find(|pair| first(&pair[0]) + pair[0].count > first(&pair[1]));
        if let Some(pair) = overlap {
            return Err(wrong(format!("the ranges {} and {} overlap", pair[0], pair[1])));
        }
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<IdMapping> {
        text.split(' ').map(|range| range.parse().expect("a range")).collect()
    }

    #[test]
    fn numbers_are_shown_as_their_range_says_and_equal_mappings_read_alike() {
        let maps = IdMaps::new(&ranges("1000:5:1 0:100000:1000"), &ranges("0:7:1")).expect("a mapping");
        assert_eq!([maps.user(0), maps.user(999), maps.user(1000)], [Some(100_000), Some(100_999), Some(5)]);
        assert_eq!([maps.user(1001), maps.group(1)], [None, None]);
        let other = IdMaps::new(&ranges("0:100000:1000 1000:5:1"), &ranges("0:7:1")).expect("a mapping");
        assert_eq!(maps.to_string(), "u0:100000:1000,1000:5:1;g0:7:1");
        assert_eq!(maps, other);
        assert_eq!(IdMaps::new(&[], &ranges("0:7:1")).expect("a mapping").user(0), Some(7));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_with_the_ranges() {
        for bad in
            ["", "1", "1:2", "a:b:c", "0:0:0", "-1:0:1", "4294967295:0:1", "0:4294967000:1000", "1:2:3:4"]
        {
            let error = bad.parse::<IdMapping>().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
        }
        for (bad, named) in [("0:0:10 9:100:1", "0:0:10 and 9:100:1"), ("0:5:2 10:6:1", "0:5:2 and 10:6:1")] {
            let error = IdMaps::new(&ranges(bad), &[]).expect_err(bad);
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(IdMaps::new(&[], &[]).is_err());
    }
}
