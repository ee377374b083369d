# What all our configs of mmengine share.
custom_imports = dict(imports=['udl_plugin.integrations.mmengine'], allow_failed_imports=False)
default_scope = 'mmengine'

randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_processor = dict(by_epoch=False, window_size=100)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3))

custom_hooks = [
    dict(type='NetworkCheckpointHook'),  # load_from can be a checkpoint of BasicSR, or of step 1
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.001),  # BasicSR: ema_decay: 0.999
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=30000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
