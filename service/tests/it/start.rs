//! The shortest test of a whole pipeline: send, apply, count.

use serde_json::json;

use crate::harness::{Load, Pipeline};

#[tokio::test]
async fn a_load_is_counted_once_published_and_verified() {
    let pipeline = Pipeline::new(json!({})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 500);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    let stats = pipeline.get("/stats").await;
    assert_eq!(stats["processed"], load.ids.len());
    assert_eq!(stats["duplicates"], load.duplicates);
    assert_eq!(stats["received"], load.records.len());
}
