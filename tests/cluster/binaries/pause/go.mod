module finetune.dev/binaries/pause

go 1.21
