//! The accounting of papers: published figures are met to within what is said, and docs/papers.md shows what the code computes.
//! `UPDATE_PAPERS=1 cargo test --test papers` writes the page's tables anew.

use meshloom::papers::{self, BUDGETS, MEDISWIFT, SPDF};

#[test]
fn spdf_is_met_within_one_per_cent() {
    for row in &SPDF {
        let c = papers::spdf(row).expect("a row");
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        assert!(near(c.sequence, row.sequence), "{} {}", row.model, row.sparsity);
        assert!(near(c.total, row.total), "{} {}", row.model, row.sparsity);
        if let Some(speedup) = row.speedup {
            assert!(near(c.speedup, speedup), "{} {}", row.model, row.sparsity);
        }
    }
}

#[test]
fn sparse_ift_budgets_are_met_exactly() {
    for (name, spec, flops) in BUDGETS {
        assert_eq!(papers::budget(spec).expect("a model"), flops, "{name}");
    }
}

#[test]
fn mediswift_is_consistent_with_its_claim() {
    // "2-2.5x" at 75 %
    for (model, _) in MEDISWIFT {
        let (_, speedups) = papers::mediswift(model).expect("a model");
        assert!((1.995..2.505).contains(&speedups[1]), "{model} {speedups:?}");
        assert!(speedups[0] < speedups[1]);
    }
}

#[test]
fn the_page_shows_what_is_computed() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/papers.md");
    let mut page = std::fs::read_to_string(&path).expect("the page");
    let update = std::env::var_os("UPDATE_PAPERS").is_some();
    for (name, table) in papers::tables().expect("the tables") {
        let (begin, end) = (format!("<!-- table {name} -->\n"), format!("<!-- end {name} -->"));
        let from = page.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = page.find(&end).unwrap_or_else(|| panic!("no {end}"));
        if update {
            page.replace_range(from..to, &table);
        } else {
            assert_eq!(
                &page[from..to],
                table,
                "docs/papers.md is out of date: UPDATE_PAPERS=1 cargo test --test papers"
            );
        }
    }
    if update {
        std::fs::write(&path, page).expect("the page is written");
    }
}
