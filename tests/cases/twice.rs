//! Importing what is there already.

use crate::house::*;
use crate::support::image::*;
use serde_json::json;

#[test]
fn importing_again_with_discarded_blobs_extracts_nothing() {
    if !root() {
        return;
    }
    for way in WAYS {
        let house = House::new();
        let bytes = several([file("a", "1"), file("b", "2").packed(Pack::Zstd)]).oci();
        house.import(way, &bytes, &["--discard-blobs", "--audit"]).ok();
        let again = house.import(way, &bytes, &["--discard-blobs", "--audit"]).ok().json();
        assert_eq!(again["trees"]["new"], 0, "{way:?}: {again}");
        let trees = again["audit"].to_string();
        assert!(!trees.contains("\"extracted\":1"), "{way:?}: {trees}");
        has(&house.tree(NAME), "a file");
    }
}

#[test]
fn an_import_without_unpacking_is_completed_by_the_next() {
    if !root() {
        return;
    }
    for way in WAYS {
        let house = House::new();
        let bytes = several([file("a", "1")]).oci();
        house.import(way, &bytes, &["--no-unpack"]).ok();
        house.import(way, &bytes, &["--dry-run"]).ok();
        let json = house.import(way, &bytes, &["--verify-source", "--audit"]).ok().json();
        assert_eq!((&json["blobs"]["new"], &json["trees"]["new"]), (&json!(0), &json!(1)), "{way:?}: {json}");
        has(&house.tree(NAME), "a file");
    }
}
